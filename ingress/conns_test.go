package ingress

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"tapestry.dev/tapestry/test/await"
)

// from dials the rig from another address of this host.
func (r *rig) from(addr string) (net.Conn, error) { return r.at(r.http, addr) }

// at dials one of the rig's listeners from another address of this host.
func (r *rig) at(listener, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	c, err := d.Dial("tcp", listener)
	if err == nil {
		r.t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(await.Patience))
	}
	return c, err
}

// hold opens a connection from addr, and gets one answer over it.
func (r *rig) hold(addr string) *wire {
	r.t.Helper()
	c, err := r.from(addr)
	if err != nil {
		r.t.Fatal(err)
	}
	w := newWire(c)
	if !w.works() {
		r.t.Fatalf("a connection of %s was not served", addr)
	}
	return w
}

// works reports whether a request over the connection is answered.
func (w *wire) works() bool {
	w.say("GET / HTTP/1.1\r\nHost: any.test\r\n\r\n")
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err == nil
}

// gone waits for the connection's end and reports whether it came.
func (w *wire) gone() bool {
	_, err := w.in.ReadByte()
	return errors.Is(err, io.EOF) || err != nil && strings.Contains(err.Error(), "reset")
}

// No client can use up the connections that others need: the client with most loses the one that was idle for longest.
func TestConnectionsAreShared(t *testing.T) {
	var seen capture
	r := newRig(t, Options{MaxConns: 8}, anyRoute(seen.backend(t, plainOK)))
	var greedy []*wire
	for range 8 {
		greedy = append(greedy, r.hold("127.0.0.2"))
	}
	var modest []*wire
	for i := range 3 { // from two other clients
		modest = append(modest, r.hold(fmt.Sprintf("127.0.0.%d", 3+i%2)))
	}
	for i := range 3 {
		if !greedy[i].gone() {
			t.Errorf("connection %d of the greedy client is still there", i)
		}
	}
	for _, w := range append(modest, greedy[3:]...) {
		if !w.works() {
			t.Error("a connection was cut that had to stay")
		}
	}
	// A client with its full share replaces its own connections that are idle.
	for range 20 {
		await.Until(t, "the client's oldest connection is idle", func() bool {
			_, oldest := r.guests.limit.Next(netip.MustParsePrefix("127.0.0.2/32"))
			return oldest.Value.idle.Load()
		})
		r.hold("127.0.0.2")
	}
	for i, w := range modest {
		if !w.works() {
			t.Errorf("connection %d of the modest clients was cut", i)
		}
	}
	if s := r.Stats(); s.Conns != 8 || s.Evicted != 23 || s.Refused != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// The connection that is ended is the one whose last byte is the oldest.
func TestIdleConnectionsGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxConns: 3})
		defer s.Shutdown(t.Context())
		var near [3]*conn
		var far [3]net.Conn
		greedy, modest := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:1")), net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.2:1"))
		for i := range near {
			a, b := net.Pipe()
			far[i] = b
			near[i], _ = s.guests.admit(addressed{a, nil, greedy})
		}
		time.Sleep(2 * touchEvery)
		go far[0].Write([]byte("x"))
		near[0].Read(make([]byte, 1))
		time.Sleep(2 * touchEvery)
		go near[1].Write([]byte("x"))
		far[1].Read(make([]byte, 1))
		synctest.Wait()

		a, _ := net.Pipe()
		newest, ok := s.guests.admit(addressed{a, nil, modest})
		if !ok {
			t.Fatal("the modest client was refused")
		}
		if _, err := far[2].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the connection that was never used is still there: %v", err)
		}
		for _, c := range []*conn{near[0], near[1], newest} {
			if s.guests.limit.Release(&c.claim) == false {
				t.Error("a connection lost its place that had to keep it")
			}
			c.Conn.Close()
		}
	})
}

// A client with its full share whose connections are all in use gets few others in their stead: it would lose about as
// much as it gets, again and again. Other clients get theirs.
func TestConnectionsInUseStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxConns: 4})
		defer s.Shutdown(t.Context())
		admit := func(from string) (*conn, bool) {
			c, ok := s.guests.admit(pipeFrom(t, from))
			if ok {
				c.touch() // as when something is read
			}
			return c, ok
		}
		const greedy, modest = "192.0.2.1:1", "192.0.2.2:1"
		var held []*conn
		for range 4 {
			c, _ := admit(greedy)
			held = append(held, c)
		}
		count := func(times int) (got int) {
			for range times {
				if _, ok := admit(greedy); ok {
					got++
				}
			}
			return got
		}
		if n := count(1000); n != 1 {
			t.Errorf("%d of 1,000 got a place at one time, want 1", n)
		}
		time.Sleep(replaceEvery)
		if n := count(1000); n != 1 {
			t.Errorf("%d of 1,000 got a place after a while, want 1", n)
		}
		if _, ok := admit(modest); !ok {
			t.Error("another client got no place") // held[2] lost its
		}
		noteState(held[3], http.StateIdle)
		if n := count(1); n != 1 {
			t.Error("an idle connection was not replaced")
		}
		if s := s.Stats(); s.Refused != 1998 || s.Evicted != 4 || s.Conns != 4 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func pipeFrom(t *testing.T, addr string) net.Conn {
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	return addressed{near, nil, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))}
}

// Each client has connections in use replaced at its own pace, and those of which nothing was read at any pace.
func TestReplacementsOfEachClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxConns: 4})
		defer s.Shutdown(t.Context())
		clients := []string{"192.0.2.1:1", "192.0.2.2:1"}
		for range 2 {
			for _, from := range clients {
				if c, ok := s.guests.admit(pipeFrom(t, from)); ok {
					c.touch()
				}
			}
		}
		for range 3 {
			for _, from := range clients {
				got := 0
				for range 10 {
					if c, ok := s.guests.admit(pipeFrom(t, from)); ok {
						c.touch()
						got++
					}
				}
				if got != 1 {
					t.Errorf("%s had %d connections in use replaced at one time, want 1", from, got)
				}
			}
			if n := len(s.guests.replaced.last); n > len(clients) {
				t.Errorf("%d clients are noted", n)
			}
			time.Sleep(replaceEvery)
		}
		if s.guests.replaced.may(netip.MustParsePrefix("192.0.2.3/32"), time.Now()); len(s.guests.replaced.last) != 1 {
			t.Errorf("%d clients are noted, want 1", len(s.guests.replaced.last))
		}

		s = New(Options{MaxConns: 4})
		defer s.Shutdown(t.Context())
		for i := range 20 {
			if _, ok := s.guests.admit(pipeFrom(t, clients[0])); !ok {
				t.Fatalf("connection %d was refused for one of which nothing was read", i)
			}
		}
	})
}

// When no client has two connections, a new client is refused.
func TestConnectionsAreRefused(t *testing.T) {
	var seen capture
	r := newRig(t, Options{MaxConns: 3}, anyRoute(seen.backend(t, plainOK)))
	for i := range 3 {
		r.hold(fmt.Sprintf("127.0.0.%d", 2+i))
	}
	c, err := r.from("127.0.0.9")
	if err != nil {
		t.Fatal(err)
	}
	if !newWire(c).gone() {
		t.Error("the fourth client was served")
	}
	if n := r.Stats().Refused; n != 1 {
		t.Errorf("Refused is %d", n)
	}
}

// Requests in one connection of HTTP/2 are charged like connections.
func TestStreamsAreShared(t *testing.T) {
	arrived, release := make(chan string, 100), make(chan struct{})
	r := newRig(t, Options{MaxConns: 4}, anyRoute(backend(t, func(w http.ResponseWriter, req *http.Request) {
		arrived <- req.Header.Get("X-Real-Ip")
		if req.URL.Path == "/quick" {
			return
		}
		select {
		case <-release:
		case <-req.Context().Done():
		}
	})))
	greedy := r.dialH2(nil)
	for range 4 {
		greedy.headers(true, ":method", "GET", ":scheme", "http", ":authority", "any.test", ":path", "/slow")
		<-arrived
	}
	c, err := r.from("127.0.0.2")
	if err != nil {
		t.Fatal(err)
	}
	modest := newH2(t, c)
	if a := modest.get("/quick"); a.status != "200" {
		t.Errorf("the modest client got %+v", a)
	}
	if a := greedy.read(1); a.status != "503" {
		t.Errorf("the greedy client's oldest request got %+v", a)
	}
	if s := r.Stats(); s.Shed != 1 {
		t.Errorf("stats: %+v", s)
	}
	close(release)
	if a := greedy.read(7); a.status != "200" {
		t.Errorf("the greedy client's last request got %+v", a)
	}
}

// A client that cancels its requests at once costs backends a connection for each, and so loses its own connection.
func TestRapidReset(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, func(w http.ResponseWriter, req *http.Request) { <-req.Context().Done() })))
	h := r.dialH2(nil)
	go func() {
		defer h.conn.Close()
		for {
			if _, err := h.framer.ReadFrame(); err != nil {
				return
			}
		}
	}()
	sent := 0
	for ; sent < 1_000_000; sent++ {
		h.block.Reset()
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "any.test"}, {":path", "/"}} {
			h.write(f[0], f[1])
		}
		id := uint32(2*sent + 1)
		if h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block.Bytes(), EndHeaders: true, EndStream: true}) != nil ||
			h.framer.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
	}
	await.Until(t, "the connection is ended", func() bool { s := r.Stats(); return s.InFlight == 0 && s.Conns == 0 })
	s := r.Stats()
	t.Logf("after %d requests sent, of which %d were begun", sent, s.Requests)
	if sent == 1_000_000 || s.Requests > 20*fewRequests {
		t.Errorf("the client was cut after %d requests sent, of which %d were begun", sent, s.Requests)
	}
}

// A client that cancels only a few, as browsers do when their user goes to another page, keeps its connection.
func TestSomeResets(t *testing.T) {
	var c client
	now := time.Now()
	for i := range 3000 {
		if c.takenBack(now, i%3 == 0) {
			t.Fatalf("cut after %d requests, a third of which were taken back", i)
		}
	}
	for few, under := range map[int]*conn{fewRequests: {}, fewOfWatched: {calmed: true}} {
		c = client{under: under}
		for i := range few/2 + 1 {
			if cut := c.takenBack(now, true); cut != (i == few/2) {
				t.Fatalf("request %d of a client that is calmed (%v), all taken back: cut is %v", i, under.calmed, cut)
			}
		}
	}
}
