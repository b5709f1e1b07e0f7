package hubble

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protowire"

	"tapestry.dev/tapestry/hubble/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ring is a Source that keeps its last four events.
type ring struct {
	mu   sync.Mutex
	all  []Flow
	more chan struct{} // closed and replaced when there is another one
}

const ringSize = 4

func (r *ring) add(f Flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, f)
	close(r.more)
	r.more = make(chan struct{})
}

func (r *ring) Stats() (seen, most uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return uint64(len(r.all)), ringSize
}

func (r *ring) Read(past bool) Reader {
	r.mu.Lock()
	defer r.mu.Unlock()
	if past {
		return &ringReader{ring: r}
	}
	return &ringReader{ring: r, next: len(r.all)}
}

type ringReader struct {
	*ring
	next, lost int
}

func (r *ringReader) read() (Flow, bool, chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if oldest := len(r.all) - ringSize; r.next < oldest {
		r.lost += oldest - r.next
		r.next = oldest
	}
	if r.next == len(r.all) {
		return Flow{}, false, r.more
	}
	r.next++
	return r.all[r.next-1], true, nil
}

func (r *ringReader) Next() (Flow, bool) {
	f, ok, _ := r.read()
	return f, ok
}

func (r *ringReader) Wait(ctx context.Context) (Flow, bool) {
	for {
		f, ok, more := r.read()
		if ok {
			return f, true
		}
		select {
		case <-more:
		case <-ctx.Done():
			return Flow{}, false
		}
	}
}

func (r *ringReader) Lost() uint64 { return uint64(r.lost) }

// numbered is the nth event: of pod shop/web-n, at second n, every second one dropped.
func numbered(n int) Flow {
	f := Flow{
		Time: time.Unix(int64(n), 0), Node: "n1", Verdict: Forwarded, Type: Trace, Protocol: TCP, Summary: strconv.Itoa(n),
		Source: End{Addr: netip.MustParseAddr("10.244.1.10"), Namespace: "shop", Pod: "web-" + strconv.Itoa(n)},
	}
	if n%2 == 1 {
		f.Verdict, f.Type, f.Reason = Dropped, Drop, PolicyDenied
	}
	return f
}

// world is a Server with a Source and a client.
type world struct {
	*ring
	client http.Client
}

func start(t *testing.T, events int) *world {
	t.Helper()
	w := &world{ring: &ring{more: make(chan struct{})}}
	for n := range events {
		w.add(numbered(n))
	}
	path := filepath.Join(t.TempDir(), "hubble.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Options{Source: w.ring, Node: "n1", Address: "192.0.2.1", Version: "v1"})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, l, nil, MostConnections, s.Handler()) }()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	w.client.Transport = transport
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		transport.CloseIdleConnections()
	})
	return w
}

// call asks for a procedure. The body of the answer is the caller's to close.
func (w *world) call(ctx context.Context, t *testing.T, method string, request message) *http.Response {
	t.Helper()
	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request)))
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://hubble"+method, bytes.NewReader(append(body, request...)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/grpc")
	a, err := w.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// next reads the next message of an answer; false at its end.
func next(t *testing.T, body io.Reader) ([]byte, bool) {
	t.Helper()
	var head [5]byte
	if _, err := io.ReadFull(body, head[:]); errors.Is(err, io.EOF) {
		return nil, false
	} else if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(body, b); err != nil {
		t.Fatal(err)
	}
	return b, true
}

// ask returns all messages of an answer, and its status.
func (w *world) ask(t *testing.T, method string, request message) (messages [][]byte, status string) {
	t.Helper()
	a := w.call(t.Context(), t, method, request)
	defer a.Body.Close()
	for m, ok := next(t, a.Body); ok; m, ok = next(t, a.Body) {
		messages = append(messages, m)
	}
	return messages, a.Trailer.Get("Grpc-Status") + " " + a.Trailer.Get("Grpc-Message")
}

// at returns a part of a message by its fields, each inside the one before.
func at(t *testing.T, b []byte, path ...protowire.Number) (got field) {
	t.Helper()
	for _, n := range path {
		all, err := fields(b)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(f field) bool { return f.n == n })
		if i < 0 {
			return field{}
		}
		got = all[i]
		b = got.bytes
	}
	return got
}

// summary returns what numbered has written there.
func summary(t *testing.T, response []byte) string {
	return string(at(t, response, 1, 100000).bytes)
}

func filterOf(fill func(*message)) func(*message) {
	return func(m *message) { m.inside(6, fill) }
}

// Of seven events four are kept.
func TestWhichFlows(t *testing.T) {
	number := func(n uint64) func(*message) { return func(m *message) { m.number(1, n) } }
	first := func(m *message) { m.number(9, 1) }
	since := func(n int64) func(*message) { return func(m *message) { m.time(7, time.Unix(n, 0)) } }
	until := func(n int64) func(*message) { return func(m *message) { m.time(8, time.Unix(n, 0)) } }
	// The field is packed.
	dropped := func(m *message) { m.inside(5, func(m *message) { *m = protowire.AppendVarint(*m, uint64(Dropped)) }) }
	pod := func(name string) func(*message) { return func(m *message) { m.text(2, name) } }
	deny := func(m *message) { m.inside(5, dropped) }
	for name, c := range map[string]struct {
		ask  []func(*message)
		want string
	}{
		"all":           {nil, "3 4 5 6"},
		"last":          {[]func(*message){number(2)}, "5 6"},
		"more":          {[]func(*message){number(1<<64 - 1)}, "3 4 5 6"},
		"first":         {[]func(*message){number(2), first}, "3 4"},
		"since":         {[]func(*message){since(5)}, "5 6"},
		"until":         {[]func(*message){until(4)}, "3 4"},
		"between":       {[]func(*message){since(4), until(5)}, "4 5"},
		"last between":  {[]func(*message){number(1), since(3), until(5)}, "5"},
		"dropped":       {[]func(*message){filterOf(dropped)}, "3 5"},
		"last dropped":  {[]func(*message){number(1), filterOf(dropped)}, "5"},
		"first dropped": {[]func(*message){number(1), first, filterOf(dropped)}, "3"},
		"pod":           {[]func(*message){filterOf(pod("shop/web-4"))}, "4"},
		"either":        {[]func(*message){filterOf(pod("shop/web-4")), filterOf(pod("shop/web-5"))}, "4 5"},
		"both":          {[]func(*message){filterOf(func(m *message) { dropped(m); pod("shop/web-5")(m) })}, "5"},
		"not dropped":   {[]func(*message){deny}, "4 6"},
		"pod but not":   {[]func(*message){filterOf(pod("shop/")), deny}, "4 6"},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, 7)
			var m message
			for _, ask := range c.ask {
				ask(&m)
			}
			got, status := w.ask(t, "/observer.Observer/GetFlows", m)
			var list []string
			for _, r := range got {
				list = append(list, summary(t, r))
			}
			if is := strings.Join(list, " "); is != c.want || status != "0 " {
				t.Errorf("got %q, status %q, want %q", is, status, c.want)
			}
		})
	}
}

// Who follows gets the last ones, then each as it comes, and is told what was lost.
func TestFollow(t *testing.T) {
	w := start(t, 3)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var m message
	m.number(1, 1)
	m.number(3, 1)
	a := w.call(ctx, t, "/observer.Observer/GetFlows", m)
	defer a.Body.Close()
	for n := 2; n < 6; n++ {
		r, ok := next(t, a.Body)
		if !ok || summary(t, r) != strconv.Itoa(n) {
			t.Fatalf("got %q, %v, want %d", summary(t, r), ok, n)
		}
		w.add(numbered(n + 1))
	}
	w.mu.Lock() // the reader waits meanwhile
	for n := 7; n < 20; n++ {
		w.all = append(w.all, numbered(n))
	}
	close(w.more)
	w.more = make(chan struct{})
	w.mu.Unlock()
	lost, got := uint64(0), 0
	for lost+uint64(got) < 14 { // 6 to 19
		r, ok := next(t, a.Body)
		if !ok {
			t.Fatal("the answer has ended")
		}
		if n := at(t, r, 3, 2).value; n > 0 {
			lost += n
		} else {
			got++
		}
	}
	if lost < 9 {
		t.Errorf("lost %d of 14 events, got %d, although four are kept", lost, got)
	}
}

func TestOtherMethods(t *testing.T) {
	w := start(t, 7)
	got, status := w.ask(t, "/observer.Observer/ServerStatus", nil)
	if status != "0 " || len(got) != 1 || at(t, got[0], 1).value != 4 || at(t, got[0], 2).value != 4 || at(t, got[0], 3).value != 7 ||
		at(t, got[0], 5, 1).value != 1 || string(at(t, got[0], 8).bytes) != "v1" {
		t.Errorf("ServerStatus: %q %x", status, got)
	}
	got, status = w.ask(t, "/observer.Observer/GetNodes", nil)
	if status != "0 " || len(got) != 1 || string(at(t, got[0], 1, 1).bytes) != "n1" || string(at(t, got[0], 1, 3).bytes) != "192.0.2.1" || at(t, got[0], 1, 9).value != 7 {
		t.Errorf("GetNodes: %q %x", status, got)
	}
	got, status = w.ask(t, "/observer.Observer/GetNamespaces", nil)
	if status != "0 " || len(got) != 1 || string(at(t, got[0], 1, 2).bytes) != "shop" {
		t.Errorf("GetNamespaces: %q %x", status, got)
	}
	for service, want := range map[string]uint64{"": 1, "hubble.server.Observer": 1, "other": 3} {
		var m message
		m.text(1, service)
		if got, status = w.ask(t, "/grpc.health.v1.Health/Check", m); status != "0 " || len(got) != 1 || at(t, got[0], 1).value != want {
			t.Errorf("Check %q: %q %x", service, status, got)
		}
	}
}

func TestRefused(t *testing.T) {
	w := start(t, 1)
	for want, c := range map[string]struct {
		method string
		fill   func(*message)
	}{
		"12 this server has no observer.Observer/GetAgentEvents": {"/observer.Observer/GetAgentEvents", func(*message) {}},
		"12 flows cannot be filtered by field 28":                {"/observer.Observer/GetFlows", filterOf(func(m *message) { m.text(28, "x") })},
		"3 filter source_ip":                                     {"/observer.Observer/GetFlows", filterOf(func(m *message) { m.text(1, "x") })},
		"3 filter dns_query":                                     {"/observer.Observer/GetFlows", filterOf(func(m *message) { m.text(18, "(") })},
		"3 first and follow":                                     {"/observer.Observer/GetFlows", func(m *message) { m.number(3, 1); m.number(9, 1) }},
		"3 the request is no protocol buffer":                    {"/observer.Observer/GetFlows", func(m *message) { *m = message{0xff} }},
		"3 field 1 of the request":                               {"/observer.Observer/GetFlows", func(m *message) { *m = message{0x0a, 9, 1} }},
		"8 the request has 70":                                   {"/observer.Observer/GetFlows", func(m *message) { m.text(9, strings.Repeat("x", 70_000)) }},
	} {
		var m message
		c.fill(&m)
		if got, status := w.ask(t, c.method, m); len(got) != 0 || !strings.HasPrefix(status, want) {
			t.Errorf("got %q and %d messages, want %q", status, len(got), want)
		}
	}
}

// One more than there may be is told so, and served when another one has ended.
func TestTooManyCalls(t *testing.T) {
	w := start(t, 1)
	var follow message
	follow.number(3, 1)
	ctx, cancel := context.WithCancel(t.Context())
	for range MostCalls {
		a := w.call(ctx, t, "/observer.Observer/GetFlows", follow) // returns when the call has begun
		defer a.Body.Close()
	}
	if _, status := w.ask(t, "/observer.Observer/ServerStatus", nil); !strings.HasPrefix(status, "8 there are 32 calls already") {
		t.Errorf("got %q", status)
	}
	cancel()
	for {
		if _, status := w.ask(t, "/observer.Observer/ServerStatus", nil); status == "0 " {
			return
		}
	}
}

// What is no gRPC is refused as HTTP has it.
func TestStrangers(t *testing.T) {
	w := start(t, 1)
	a, err := w.client.Get("http://hubble/observer.Observer/GetFlows")
	if err != nil {
		t.Fatal(err)
	}
	a.Body.Close()
	if a.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("got %s", a.Status)
	}
}
