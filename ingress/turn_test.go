package ingress

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestReadersTakeTurns: what a client sent is looked at when it is that client's turn, over HTTP/1.1 and HTTP/2. Others
// go on meanwhile.
func TestReadersTakeTurns(t *testing.T) {
	greedy := netip.MustParsePrefix("192.0.2.1/32")
	s := New(Options{Endpoints: endpointsIn})
	var turns atomic.Int32 // of the other client
	gate := make(chan struct{})
	s.guests.turn = func(_ <-chan struct{}, owner netip.Prefix) {
		if owner == greedy {
			<-gate
			return
		}
		turns.Add(1)
	}
	var begun atomic.Int32
	if err := s.Set(anyRoute(backend(t, func(http.ResponseWriter, *http.Request) { begun.Add(1) }))); err != nil {
		t.Fatal(err)
	}
	l := make(pipes)
	served := make(chan error, 1)
	go func() { served <- s.ServeHTTP(t.Context(), l) }()
	defer func() { close(l); s.server.Close(); <-served }()

	first := newWire(l.dial("192.0.2.1"))
	done := make(chan bool, 1)
	go func() { done <- first.works() }()
	if !newWire(l.dial("192.0.2.2")).works() {
		t.Error("another client is not served")
	}
	if n := turns.Load(); n == 0 {
		t.Error("the other client was served without a turn")
	}
	before := turns.Load()
	h := newH2(t, l.dial("192.0.2.2"))
	for range 3 {
		if a := h.get("/"); a.status != "200" {
			t.Errorf("another client's request in HTTP/2 got %+v", a)
		}
	}
	if n := turns.Load() - before; n < 3 {
		t.Errorf("three requests in HTTP/2 had %d turns", n)
	}
	if n := begun.Load(); n != 4 {
		t.Errorf("%d requests were begun, want the other client's 4", n)
	}
	close(gate)
	if !<-done || begun.Load() != 5 {
		t.Errorf("the request that waited for its turn was not served; %d were begun", begun.Load())
	}
}

// inHTTP2 begins a request in HTTP/2 of a client, and returns a func that takes it back.
func inHTTP2(s *Server, c *client) (w *httptest.ResponseRecorder, cancel func()) {
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), clientKey{}, c))
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	r.ProtoMajor, r.ProtoMinor = 2, 0
	w = httptest.NewRecorder()
	go s.serve(w, r)
	return w, cancel
}

// TestWhoWaitsIsCharged: requests in HTTP/2 that wait for their turn have places, so no more wait than there are. One
// that lost its place, or is taken back, does not wait any more.
func TestWhoWaitsIsCharged(t *testing.T) {
	const places, many = 10, 1000
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxConns: places})
		defer s.Shutdown(context.Background())
		var waiting atomic.Int32
		s.guests.turn = func(done <-chan struct{}, _ netip.Prefix) {
			waiting.Add(1)
			defer waiting.Add(-1)
			<-done
		}
		c := &client{owner: netip.MustParsePrefix("192.0.2.1/32")}
		var cancels []func()
		shed := 0
		var answers []*httptest.ResponseRecorder
		for range many {
			w, cancel := inHTTP2(s, c)
			answers, cancels = append(answers, w), append(cancels, cancel)
		}
		synctest.Wait()
		for _, w := range answers {
			if w.Code == http.StatusServiceUnavailable {
				shed++
			}
		}
		if n := waiting.Load(); n != places || shed != many-places {
			t.Errorf("%d wait for their turn, want %d; %d were refused", n, places, shed)
		}
		for _, cancel := range cancels {
			cancel()
		}
		synctest.Wait()
		if n, held := waiting.Load(), s.streams.Stats().Held; n != 0 || held != 0 {
			t.Errorf("%d wait and %d have places after all were taken back", n, held)
		}
	})
}

// TestTurnsAreNotTheClientsFault: a request that is taken back after a long wait for its turn was not taken back at
// once, and the turns of a body's reads are no stall.
func TestTurnsAreNotTheClientsFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		defer s.Shutdown(context.Background())
		s.guests.turn = func(<-chan struct{}, netip.Prefix) { time.Sleep(2 * time.Minute) }
		owner := netip.MustParsePrefix("192.0.2.1/32")
		c := &client{owner: owner}
		_, cancel := inHTTP2(s, c)
		time.Sleep(2 * atOnce)
		cancel()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if all, taken := c.requests.Load(), c.taken.Load(); all != 1 || taken != 0 {
			t.Errorf("%d of %d requests count as taken back at once", taken, all)
		}

		near, far := net.Pipe()
		defer near.Close()
		c.under = &conn{Conn: far, guests: &s.guests, owner: owner, ended: make(chan struct{})}
		r := &http.Request{ProtoMajor: 1, Body: io.NopCloser(c.under), ContentLength: 3}
		b := newClientBody(&request{s: s, client: c, in: r, control: http.NewResponseController(httptest.NewRecorder())})
		go func() {
			for range 3 {
				io.WriteString(near, "x")
			}
		}()
		if _, err := io.ReadFull(b, make([]byte, 3)); err != nil || b.stalled.Load() {
			t.Errorf("a body whose turns took long: stalled is %v, %v", b.stalled.Load(), err)
		}
		time.AfterFunc(2*s.stallTimeout, func() { near.Close() })
		if b.Read(make([]byte, 1)); !b.stalled.Load() {
			t.Error("a body of which nothing comes is not stalled")
		}
	})
}

// TestEachRequestHasATurn: requests that were read at once have a turn each, over HTTP/1.1 as in HTTP/2. A request that
// was read alone has one.
func TestEachRequestHasATurn(t *testing.T) {
	for _, n := range []int32{1, 5} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Options{})
			var turns atomic.Int32
			s.guests.turn = func(<-chan struct{}, netip.Prefix) { turns.Add(1) }
			l := make(pipes)
			served := make(chan error, 1)
			go func() { served <- s.ServeHTTP(t.Context(), l) }()
			near := l.dial("192.0.2.1")
			in := bufio.NewReader(near)
			ask := func(n int32) {
				go io.WriteString(near, strings.Repeat("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", int(n)))
				for range n {
					resp, err := http.ReadResponse(in, nil)
					if err != nil {
						t.Fatal(err)
					}
					readAll(t, resp)
				}
				synctest.Wait()
			}
			ask(1) // net/http reads the first 24 bytes of a connection on their own
			turns.Store(0)
			ask(n)
			if turns.Load() != n {
				t.Errorf("%d requests in one piece had %d turns", n, turns.Load())
			}
			near.Close()
			close(l)
			s.Shutdown(context.Background())
			<-served
		})
	}
	s := New(Options{})
	defer s.Shutdown(t.Context())
	turns := 0
	s.guests.turn = func(<-chan struct{}, netip.Prefix) { turns++ }
	rq := &request{s: s, client: &client{under: new(conn)}, in: httptest.NewRequest(http.MethodGet, "/", nil)}
	rq.client.under.fresh.Store(true)
	for range 5 {
		rq.turn()
	}
	if turns != 4 {
		t.Errorf("five requests of one read had %d turns besides that of the read", turns)
	}
}
