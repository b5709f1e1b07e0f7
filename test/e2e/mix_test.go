package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tapestry.dev/tapestry/test/probe"
)

// mixed is the result of a mix of traffic.
type mixed struct {
	Connections, Bytes  int64 // of transfers, whose hashes are compared at both ends
	Asked, Answered     int64 // datagrams
	Resolved            int64
	Held                map[string]probe.Held
	Failures            int64
	FirstFailures       []string // a few
	LongestTransferMS   int64
	LongestTransferAddr string
}

// mixer makes a mix. Its workers pause a little after each action, to leave processor time to what is tested.
type mixer struct {
	mu  sync.Mutex
	out mixed
}

const mixPause = 20 * time.Millisecond

func (m *mixer) failed(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.out.Failures++; len(m.out.FirstFailures) < 5 {
		m.out.FirstFailures = append(m.out.FirstFailures, fmt.Sprintf(format, args...))
	}
}

// mix makes several kinds of traffic at once until the input ends: KIND=ADDR..., where KIND is transfer, hold, ask, or
// resolve=NAME.
func mix(ctx context.Context, args []string) error {
	end := untilInputEnds(ctx)
	m := &mixer{out: mixed{Held: map[string]probe.Held{}}}
	var working sync.WaitGroup
	for _, arg := range args {
		kind, addr, _ := strings.Cut(arg, "=")
		work := map[string]func(context.Context, string, int){"transfer": m.transfer, "ask": m.ask, "resolve": m.resolve}[kind]
		working.Go(func() {
			switch kind {
			case "hold":
				untilAnswered(end, addr)
				m.hold(end, addr)
				return
			case "transfer":
				untilWell(end, func() bool { _, err := transferOnce(ctx, addr, 1, 1); return err == nil })
			case "resolve":
				untilWell(end, func() bool { _, err := probe.Resolve(ctx, "host", addr); return err == nil })
			}
			for i := 0; end.Err() == nil; i++ {
				work(ctx, addr, i) // each ends by itself
				select {
				case <-end.Done():
				case <-time.After(mixPause):
				}
			}
		})
	}
	started()
	working.Wait()
	return print(m.out)
}

// transfer makes mostly short connections, and sometimes a long one.
func (m *mixer) transfer(ctx context.Context, addr string, i int) {
	size := rand.Int64N(64 << 10)
	if i%40 == 0 {
		size = 1 << 20
	}
	got, err := transferOnce(ctx, addr, rand.Uint64(), size)
	if err != nil || !got.There || !got.Back || got.Bytes != size {
		m.failed("transfer of %d bytes to %s: %+v, %v", size, addr, got, err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.out.Connections++
	m.out.Bytes += 2 * size
	if got.Milliseconds > m.out.LongestTransferMS {
		m.out.LongestTransferMS, m.out.LongestTransferAddr = got.Milliseconds, addr
	}
}

// ask sends a datagram, which may be lost, and checks that the server received what was sent.
func (m *mixer) ask(ctx context.Context, addr string, i int) {
	body := fmt.Sprintf("%d %s", i, strings.Repeat("x", rand.IntN(900)))
	a := probe.Ask(ctx, probe.Request{Network: "udp", Addr: addr, Body: body, Timeout: time.Second})
	if a.Error == "" && a.Got != body {
		m.failed("datagram to %s: the server got %d bytes of %d", addr, len(a.Got), len(body))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.out.Asked++
	if a.Error == "" {
		m.out.Answered++
	}
}

func (m *mixer) resolve(ctx context.Context, name string, _ int) {
	got, err := probe.Resolve(ctx, "host", name)
	if err != nil || len(got) != 2 {
		m.failed("resolve %s: %v, %v", name, got, err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.out.Resolved++
}

// hold keeps one connection until the end.
func (m *mixer) hold(end context.Context, addr string) {
	h := probe.Hold(end, probe.Request{Network: "tcp", Addr: addr}, mixPause, nil, func() {})
	if end.Err() != nil && h.Error == context.Canceled.Error() {
		h.Error = "" // it ended because it was told to
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.out.Held[addr] = h
}

// used is what a process uses, according to the kernel.
type used struct{ Descriptors, Threads, RSSKiB int }

// usage reports what a process uses, from outside: PID.
func usage(_ context.Context, args []string) error {
	dir := filepath.Join("/proc", args[0])
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return err
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return err
	}
	out := used{Descriptors: len(fds)}
	for name, to := range map[string]*int{"Threads": &out.Threads, "VmRSS": &out.RSSKiB} {
		found := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+)`).FindSubmatch(status)
		if found == nil {
			return fmt.Errorf("%s/status does not say %s", dir, name)
		}
		if *to, err = strconv.Atoi(string(found[1])); err != nil {
			return err
		}
	}
	return print(out)
}

// open counts the flows that have not ended. They stay until somebody closes them, or for a day.
func open(flows map[string]float64) (n int) {
	for state, count := range flows {
		if slices.Contains([]string{"SYN_SENT", "SYN_RECEIVED", "ESTABLISHED", "FIN_ORIGINAL", "FIN_REPLY"}, state) {
			n += int(count)
		}
	}
	return n
}
