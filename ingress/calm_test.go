package ingress

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"testing"
	"time"

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
		if got := c.pause(client, now); got != pause {
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
	if n := len(c.until); n != mostCalmed {
		t.Errorf("%d clients are watched", n)
	}
	now = now.Add(calmTime + 1)
	if c.watch(b, now); len(c.until) != 1 {
		t.Errorf("%d clients are watched long after", len(c.until))
	}
}

// TestLongerWhileItGoesOn: a client that goes on, and needs its connections for that, waits longer every second, up to a
// bound. One that gives up its connections unread does not: it waits for nothing, and more of them would be held.
func TestLongerWhileItGoesOn(t *testing.T) {
	client := netip.MustParsePrefix("192.0.2.1/32")
	start := time.Unix(1_800_000_000, 0)
	floods := func(c *calm, now time.Time) { c.watch(client, now) }
	givesUp := func(shaken bool) func(*calm, time.Time) {
		return func(c *calm, now time.Time) {
			for range fewUnanswered + 1 {
				c.pause(client, now)
				c.unanswered(client, now, shaken)
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
			if got := c.pause(client, now); got != want*calmPause {
				t.Errorf("a client that %s waits for %v after %d s, want %v", name, got, i, want*calmPause)
			}
		}
		late := start.Add(6*raiseEvery + calmTime)
		if got := c.pause(client, late); got != 0 {
			t.Errorf("a client that %s waits for %v long after", name, got)
		}
		if c.watch(client, late); c.pause(client, late) != calmPause {
			t.Errorf("a client that %s begins with a long pause the next time", name)
		}
	}
}

// TestHandshakesAreCalmed: a client that only shakes hands is watched, though it was sent something each time.
func TestHandshakesAreCalmed(t *testing.T) {
	cert, _ := certificate(t, "any.test")
	c := anyRoute(backend(t, func(http.ResponseWriter, *http.Request) {}))
	c.Certificates = []Certificate{cert}
	r := newRig(t, Options{}, c)
	client := netip.MustParsePrefix("127.0.0.2/32")
	unanswered := func() int {
		r.guests.calm.mu.Lock()
		defer r.guests.calm.mu.Unlock()
		if n := r.guests.calm.count[client]; n != nil {
			return n.unanswered
		}
		return 0
	}
	shake := func() *tls.Conn {
		plain, err := r.at(r.https, "127.0.0.2")
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(plain, &tls.Config{InsecureSkipVerify: true, ServerName: "any.test"})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	asks := shake()
	if !newWire(asks).works() {
		t.Fatal("the client is not served")
	}
	asks.Close()
	for range 3 {
		shake().Close()
	}
	await.Until(t, "three connections without a request are counted", func() bool { return unanswered() == 3 })
	await.Until(t, "all have ended", func() bool { return r.Stats().Conns == 0 })
	if n := unanswered(); n != 3 {
		t.Errorf("%d connections are counted as given up, of three and one with a request", n)
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
			c.pause(client, at)
			if (i+1)*tt.gone/tt.all > i*tt.gone/tt.all { // evenly
				c.unanswered(client, at, false)
			}
		}
		if _, watched := c.until[client]; watched != tt.watched {
			t.Errorf("%s: watched is %v", tt.name, watched)
		}
		end := now.Add(time.Duration(tt.all) * tt.every)
		c.pause(client, end)
		c.unanswered(client, end, false)
		if _, watched := c.until[client]; watched != tt.after {
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
		_, ok := r.guests.calm.until[netip.MustParsePrefix("127.0.0.2/32")]
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
	if w := r.hold("127.0.0.1"); w == nil || r.guests.calm.pause(netip.MustParsePrefix("127.0.0.1/32"), time.Now()) != 0 {
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
		return r.guests.calm.until[netip.MustParsePrefix("127.0.0.1/32")] != watched{}
	})
	if a := r.dialH2(nil).get("/"); a.status != "200" {
		t.Errorf("the next connection got %+v", a)
	}
}
