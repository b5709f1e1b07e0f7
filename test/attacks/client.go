package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// programs are what runs in the lab's namespaces. Their last argument is how long they run.
var programs = map[string]func(ctx context.Context, args []string) error{
	"visit": visit, "watch": watch, "backend": backend,
	"idle": attacker(idle), "resets": attacker(resets), "made-you-reset": attacker(madeYouReset), "unread": attacker(unread),
	"window-0": attacker(windowZero), "slow-bodies": attacker(slowBodies), "handshakes": attacker(handshakes), "once": attacker(once),
	"syns": attacker(syns), "datagrams": attacker(datagrams), "from-many": attacker(fromMany),
}

// attacker returns a program that prints how often the attack did what it does.
func attacker(f func(ctx context.Context, args []string, times *atomic.Int64) error) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		var times atomic.Int64
		if err := f(ctx, args, &times); err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(times.Load())
	}
}

func runProgram(name string, args []string) error {
	f := programs[name]
	if f == nil {
		return fmt.Errorf("there is no program %q", name)
	}
	ctx := context.Background()
	if len(args) > 0 {
		d, err := time.ParseDuration(args[len(args)-1])
		if err != nil {
			return err
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
		args = args[:len(args)-1]
	}
	return f(ctx, args)
}

// seen is what a client saw. Times are those of answers, in milliseconds.
type seen struct {
	Answered, Failed int
	P50, P90, P99    float64
}

func (s seen) String() string {
	return fmt.Sprintf("%d/%d, %.1f %.1f %.1f", s.Answered, s.Failed, s.P50, s.P90, s.P99)
}

const (
	pause  = 25 * time.Millisecond // between two requests of the well-behaved client
	limits = 2 * time.Second       // how long it waits for an answer
)

// visit makes requests, each over a connection of its own, in turn to an Ingress and to a NodePort: SCHEME of the
// Ingress. It has another address than the attackers, and waits for no answer before it makes the next request.
func visit(ctx context.Context, args []string) error {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(visitor)}, Timeout: limits}
	clientOf := func(addr string) *http.Client {
		return &http.Client{Timeout: limits, Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: victimHost},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, network, addr)
			},
		}}
	}
	port := ingressPort
	if args[0] == "https" {
		port = ingressTLSPort
	}
	clients := [2]*http.Client{clientOf(net.JoinHostPort(nodeAddr, port)), clientOf(net.JoinHostPort(nodeAddr, nodePort))}
	urls := [2]string{args[0] + "://" + victimHost + "/", "http://" + victimHost + "/"}
	var mu sync.Mutex
	var took []float64
	var out seen
	var wg sync.WaitGroup
	for n := 0; ctx.Err() == nil; n++ {
		wg.Go(func() {
			begin := time.Now()
			err := get(clients[n%2], urls[n%2])
			ms := float64(time.Since(begin).Microseconds()) / 1000
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				out.Failed++
				return
			}
			out.Answered++
			took = append(took, ms)
		})
		wait(ctx, pause)
	}
	wg.Wait()
	slices.Sort(took)
	for p, to := range map[float64]*float64{0.5: &out.P50, 0.9: &out.P90, 0.99: &out.P99} {
		if len(took) > 0 {
			*to = took[min(int(p*float64(len(took))), len(took)-1)]
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func get(c *http.Client, url string) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// wait waits for d, or until ctx is done.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// usage is what a process used at most, and how much of a processor in all.
type usage struct {
	RSSKiB, Descriptors int
	Seconds             float64
}

func (u usage) String() string {
	return fmt.Sprintf("%d | %d | %.1f", u.RSSKiB/1024, u.Descriptors, u.Seconds)
}

// watch looks at a process: PID.
func watch(ctx context.Context, args []string) error {
	dir := filepath.Join("/proc", args[0])
	begin, err := processor(dir)
	if err != nil {
		return err
	}
	var out usage
	for ; ctx.Err() == nil; wait(ctx, 100*time.Millisecond) {
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			return fmt.Errorf("the agent ended: %w", err)
		}
		if m := resident.FindSubmatch(status); m != nil {
			kib, _ := strconv.Atoi(string(m[1]))
			out.RSSKiB = max(out.RSSKiB, kib)
		}
		fds, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			return err
		}
		out.Descriptors = max(out.Descriptors, len(fds))
	}
	end, err := processor(dir)
	if err != nil {
		return err
	}
	out.Seconds = end - begin
	return json.NewEncoder(os.Stdout).Encode(out)
}

var resident = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+)`)

// processor returns how many seconds of processors a process has used (proc(5), stat, in ticks of 10 ms).
func processor(dir string) (float64, error) {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may hold blanks
	fields := strings.Fields(rest)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return float64(user+system) / 100, nil
}
