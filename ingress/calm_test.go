package ingress

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"tapestry.dev/tapestry/share/conns"
	"tapestry.dev/tapestry/test/await"
)

// TestCalm: new connections of a client that is watched wait for a moment, for as long as it is watched. Nobody else
// notices, and the memory for clients is bounded.
func TestCalm(t *testing.T) {
	a, b := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64")
	now := time.Unix(1_800_000_000, 0)
	var c calm
	want := func(what string, client netip.Prefix, pause time.Duration) {
		t.Helper()
		if got, _ := c.pause(client, now); got != pause {
			t.Errorf("%s: %v, want %v", what, got, pause)
		}
	}
	want("nobody is watched", a, 0)
	c.watch(a, now)
	want("a is watched", a, calmPause)
	want("another client", b, 0)
	now = now.Add(calmTime)
	want("still", a, calmPause)
	c.watch(a, now)
	now = now.Add(calmTime)
	want("and again", a, 2*calmPause)
	now = now.Add(1)
	want("not any more", a, 0)
	for i := range 2 * mostCalmed {
		c.watch(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), now)
	}
	if n := len(c.watched); n != mostCalmed {
		t.Errorf("%d clients are watched", n)
	}
	now = now.Add(calmTime + 1)
	if c.watch(b, now); len(c.watched) != 1 {
		t.Errorf("%d clients are watched long after", len(c.watched))
	}
}

// TestLongerWhileItGoesOn: a client that goes on, and needs its connections for that, waits longer every second, up to
// a bound. One that gives up its connections unread does not: it waits for nothing, and more of them would be held.
func TestLongerWhileItGoesOn(t *testing.T) {
	client := netip.MustParsePrefix("192.0.2.1/32")
	start := time.Unix(1_800_000_000, 0)
	floods := func(c *calm, now time.Time) { c.watch(client, now) }
	givesUp := func(shaken bool) func(*calm, time.Time) {
		return func(c *calm, now time.Time) {
			for range fewUnanswered + 1 {
				_, o := c.pause(client, now)
				c.unanswered(client, o, now, shaken)
			}
		}
	}
	for name, tt := range map[string]struct {
		does func(*calm, time.Time)
		want [6]time.Duration // in units of calmPause, every second
	}{
		"floods":            {floods, [6]time.Duration{1, 2, 4, 8, 8, 8}},
		"only shakes hands": {givesUp(true), [6]time.Duration{1, 2, 4, 8, 8, 8}},
		"only connects":     {givesUp(false), [6]time.Duration{1, 1, 1, 1, 1, 1}},
	} {
		var c calm
		for i, want := range tt.want {
			now := start.Add(time.Duration(i) * raiseEvery)
			tt.does(&c, now)
			tt.does(&c, now.Add(raiseEvery/2))
			if got, _ := c.pause(client, now); got != want*calmPause {
				t.Errorf("a client that %s waits for %v after %d s, want %v", name, got, i, want*calmPause)
			}
		}
		late := start.Add(6*raiseEvery + calmTime)
		if got, _ := c.pause(client, late); got != 0 {
			t.Errorf("a client that %s waits for %v long after", name, got)
		}
		c.watch(client, late)
		if got, _ := c.pause(client, late); got != calmPause {
			t.Errorf("a client that %s begins with a long pause the next time", name)
		}
	}
}

// TestUnansweredInTheirWindow: connections that were opened with many others, and end unused when the next count has
// begun, are counted with those others.
func TestUnansweredInTheirWindow(t *testing.T) {
	client := netip.MustParsePrefix("192.0.2.1/32")
	now := time.Unix(1_800_000_000, 0)
	var c calm
	var unused []*opened
	open := func(n int) {
		for range n {
			_, o := c.pause(client, now)
			unused = append(unused, o)
		}
	}
	const gone = fewUnanswered + 100
	open(3 * gone)
	unused = unused[:gone]
	now = now.Add(calmTime + 1)
	_, _ = c.pause(client, now)
	for _, o := range unused {
		c.unanswered(client, o, now, true)
	}
	if len(c.watched) != 0 {
		t.Error("a client is watched that left a third of its connections unused")
	}
	unused = nil
	now = now.Add(calmTime + 1)
	open(gone)
	for _, o := range unused {
		c.unanswered(client, o, now, true)
	}
	if len(c.watched) != 1 {
		t.Error("a client is not watched that left all of its connections unused")
	}
}

// TestThePauseFalls: a client that gives up its connections while they are paused gets a shorter pause every second,
// and is let go when it gives up fewer.
func TestThePauseFalls(t *testing.T) {
	client := netip.MustParsePrefix("192.0.2.1/32")
	now := time.Unix(1_800_000_000, 0)
	var c calm
	for c.watched[client].pause < longestPause {
		c.watch(client, now)
		now = now.Add(raiseEvery)
	}
	for _, want := range []time.Duration{4, 2, 1, 1} {
		for range fewUnanswered + 1 {
			_, o := c.pause(client, now)
			c.unanswered(client, o, now, false)
		}
		if d, _ := c.pause(client, now); d != want*calmPause {
			t.Errorf("a connection waits for %v, want %v", d, want*calmPause)
		}
		now = now.Add(raiseEvery)
	}
	for range 3 * calmTime / raiseEvery {
		for range fewUnanswered / 2 * raiseEvery / calmTime {
			_, o := c.pause(client, now)
			c.unanswered(client, o, now, false)
		}
		now = now.Add(raiseEvery)
	}
	if d, _ := c.pause(client, now); d != 0 {
		t.Errorf("a connection still waits for %v", d)
	}
}

// TestWhoIsNotAnsweredIsCounted: a client that gives up before it is answered is counted, whatever else it was sent and
// whatever it asked for. One that was answered, or refused, is not.
func TestWhoIsNotAnsweredIsCounted(t *testing.T) {
	const get = "GET %s HTTP/1.1\r\nHost: any.test\r\n\r\n"
	slow := ServicePort{Namespace: "default", Name: "192.0.2.9:80", Port: "80"}
	answered := func(c net.Conn) {
		fmt.Fprintf(c, get, "/none")
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			io.Copy(io.Discard, resp.Body)
		}
	}
	givesUp := func(path string) func(net.Conn) {
		return func(c net.Conn) { fmt.Fprintf(c, get, path) }
	}
	inH2C := func(path string) func(net.Conn) {
		return func(c net.Conn) {
			h := newH2(t, c)
			read := make(chan struct{})
			go func() {
				defer close(read)
				for {
					f, err := h.framer.ReadFrame()
					if _, ok := f.(*http2.MetaHeadersFrame); ok || err != nil {
						io.Copy(io.Discard, c)
						return
					}
				}
			}()
			h.headers(true, ":method", "GET", ":scheme", "http", ":authority", "any.test", ":path", path)
			synctest.Wait()
			c.Close()
			<-read
		}
	}
	for _, tt := range []struct {
		name   string
		secure bool
		does   func(net.Conn)
		want   int
	}{
		{"only connects", false, func(net.Conn) {}, 1},
		{"only shakes hands", true, func(net.Conn) {}, 1},
		{"asks over TLS and leaves", true, givesUp("/slow"), 1},
		{"asks for nothing that is there over TLS and leaves", true, givesUp("/none"), 1},
		{"asks and leaves", false, givesUp("/slow"), 1},
		{"asks in h2c and leaves", false, inH2C("/slow"), 1},
		{"is answered in h2c", false, inH2C("/none"), 0},
		{"is answered", false, answered, 0},
		{"is answered over TLS", true, answered, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			dial := func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
			s := New(Options{Dial: dial, Endpoints: func(ServicePort) []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:80")} }})
			cert, _ := certificate(t, "any.test")
			if err := s.Set(Config{Routes: []Route{{Source: "default/slow", Path: "/slow", Backend: slow}}, Certificates: []Certificate{cert}}); err != nil {
				t.Fatal(err)
			}
			l := make(pipes)
			served := make(chan error, 1)
			serve := s.ServeHTTP
			if tt.secure {
				serve = s.ServeHTTPS
			}
			go func() { served <- serve(t.Context(), l) }()
			c := l.dial("192.0.2.1")
			plain := c
			if tt.secure {
				shaken := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "any.test", SessionTicketsDisabled: true})
				if err := shaken.Handshake(); err != nil {
					t.Fatal(err)
				}
				c = shaken
			}
			tt.does(c)
			synctest.Wait()
			plain.Close()
			synctest.Wait()
			s.guests.calm.mu.Lock()
			n := s.guests.calm.count[netip.MustParsePrefix("192.0.2.1/32")]
			if n == nil || n.unanswered != tt.want {
				t.Errorf("a client that %s is counted as %+v, want %d unanswered", tt.name, n, tt.want)
			}
			s.guests.calm.mu.Unlock()
			close(l)
			s.Shutdown(context.Background())
			<-served
		})
	}
}

// TestUnansweredAreCounted: a client is watched that gives up many connections and most of its own before anything was
// sent to it. Whoever gives up few, or has most of them answered, is not.
func TestUnansweredAreCounted(t *testing.T) {
	client := netip.MustParsePrefix("192.0.2.1/32")
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		name           string
		all, gone      int
		every          time.Duration // between two connections
		watched, after bool          // then, and with one connection more that is given up
	}{
		{"none given up", 10_000, 0, 0, false, false},
		{"few", fewUnanswered, fewUnanswered, 0, false, true},
		{"many", 1000, 1000, 0, true, true},
		{"half of them", 2 * (fewUnanswered + 1), fewUnanswered + 1, 0, false, true},
		{"a third of many", 3000, 1000, 0, false, false},
		{"many, over a long time", 1000, 1000, calmTime/fewUnanswered + time.Millisecond, false, false},
	} {
		var c calm
		for i := range tt.all {
			at := now.Add(time.Duration(i) * tt.every)
			_, o := c.pause(client, at)
			if (i+1)*tt.gone/tt.all > i*tt.gone/tt.all { // evenly
				c.unanswered(client, o, at, false)
			}
		}
		if _, watched := c.watched[client]; watched != tt.watched {
			t.Errorf("%s: watched is %v", tt.name, watched)
		}
		end := now.Add(time.Duration(tt.all) * tt.every)
		_, o := c.pause(client, end)
		c.unanswered(client, o, end, false)
		if _, watched := c.watched[client]; watched != tt.after {
			t.Errorf("%s, and one more: watched is %v", tt.name, watched)
		}
	}
	var c calm
	for i := range 2 * mostCalmed {
		c.pause(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), now)
	}
	if n := len(c.count); n != mostCalmed {
		t.Errorf("%d clients are counted", n)
	}
	c.pause(client, now.Add(calmTime+1))
	if n := len(c.count); n != 1 {
		t.Errorf("%d clients are counted long after", n)
	}
}

// TestResetsAreCalmed: a client that resets its connections at once is watched, and is still served.
func TestResetsAreCalmed(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, func(http.ResponseWriter, *http.Request) {})))
	watched := func() bool {
		r.guests.calm.mu.Lock()
		defer r.guests.calm.mu.Unlock()
		_, ok := r.guests.calm.watched[netip.MustParsePrefix("127.0.0.2/32")]
		return ok
	}
	for end := time.Now().Add(await.Patience); !watched(); {
		if time.Now().After(end) {
			t.Fatal("the client is not watched")
		}
		c, err := r.from("127.0.0.2")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: any.test\r\n\r\n")
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	r.hold("127.0.0.2")
	if r.hold("127.0.0.1") == nil {
		t.Error("another client is not served")
	}
	if d, _ := r.guests.calm.pause(netip.MustParsePrefix("127.0.0.1/32"), time.Now()); d != 0 {
		t.Error("another client is calmed, too")
	}
}

// goneListener accepts connections of 127.0.0.2 when they have been reset.
type goneListener struct{ net.Listener }

func (l goneListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	for err == nil && remote(c) == netip.MustParseAddr("127.0.0.2") && !conns.Gone(c) {
		runtime.Gosched()
	}
	return c, err
}

// TestResetsAreNotServed: requests over connections that were reset before they were read are not begun.
func TestResetsAreNotServed(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, func(http.ResponseWriter, *http.Request) {})))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.ServeHTTP(t.Context(), goneListener{l}) }()
	r.http = l.Addr().String()
	for range 50 {
		c, err := r.from("127.0.0.2")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: any.test\r\n\r\n")
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	last := r.hold("127.0.0.1")
	await.Until(t, "the others have ended", func() bool { return r.Stats().Conns == 1 })
	if n := r.Stats().Requests; n != 1 {
		t.Errorf("%d requests were begun, want 1", n)
	}
	if !last.works() {
		t.Error("the other client is not served any more")
	}
	l.Close()
	<-done // whatever it says
}

// TestFloodIsCalmed: a client whose connection was ended because it took back its requests is watched.
func TestFloodIsCalmed(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, func(http.ResponseWriter, *http.Request) {})))
	// net/http ends some of these connections itself, when it has too many requests that it has not begun.
	for end := time.Now().Add(await.Patience); r.Stats().Flooded == 0; {
		if time.Now().After(end) {
			t.Fatal("no connection was ended for taking back its requests")
		}
		h := r.dialH2(nil)
		go io.Copy(io.Discard, h.conn)
		for h.open(true) == nil && h.framer.WriteRSTStream(h.next-2, 8) == nil {
		}
	}
	await.Until(t, "the client is watched", func() bool {
		r.guests.calm.mu.Lock()
		defer r.guests.calm.mu.Unlock()
		return r.guests.calm.watched[netip.MustParsePrefix("127.0.0.1/32")] != watched{}
	})
	if a := r.dialH2(nil).get("/"); a.status != "200" {
		t.Errorf("the next connection got %+v", a)
	}
}
