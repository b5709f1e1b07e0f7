package ingress

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// TestCalm: connections of a client that is watched are read one after the other, those that would wait for long are
// closed, and nobody else notices.
func TestCalm(t *testing.T) {
	a, b := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64")
	now := time.Unix(1_800_000_000, 0)
	var c calm
	want := func(what string, client netip.Prefix, pause time.Duration, ok bool) {
		t.Helper()
		if got, opened := c.wait(client, now); got != pause || opened != ok {
			t.Errorf("%s: %v, %v, want %v, %v", what, got, opened, pause, ok)
		}
	}
	want("nobody is watched", a, 0, true)
	c.watch(a, now)
	for i := range int(longestCalm / calmPause) {
		want(fmt.Sprint("connection ", i), a, time.Duration(i+1)*calmPause, true)
	}
	want("one too many", a, 0, false)
	want("another client", b, 0, true)
	now = now.Add(calmPause)
	want("a place came free", a, longestCalm, true)
	c.watch(a, now) // again: it does not begin anew
	want("and is taken", a, 0, false)
	now = now.Add(calmTime)
	want("all others are gone", a, 0, true)
	want("the second beside it", a, calmPause, true)
	now = now.Add(1)
	want("it is not watched any more", a, 0, true)
	want("nor now", a, 0, true)
	for i := range 2 * mostCalmed {
		c.watch(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), now)
	}
	if n := len(c.clients); n != mostCalmed {
		t.Errorf("%d clients are watched", n)
	}
	now = now.Add(calmTime + 1)
	if c.watch(b, now); len(c.clients) != 1 {
		t.Errorf("%d clients are watched long after", len(c.clients))
	}
}

// TestFloodIsCalmed: a client whose connection was ended because it took back its requests is watched.
func TestFloodIsCalmed(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, func(http.ResponseWriter, *http.Request) {})))
	h := r.dialH2(nil)
	go io.Copy(io.Discard, h.conn)
	for h.open(true) == nil && h.framer.WriteRSTStream(h.next-2, 8) == nil {
	}
	await.Until(t, "the connection is ended", func() bool { return r.Stats().Flooded > 0 })
	await.Until(t, "the client is watched", func() bool {
		r.guests.calm.mu.Lock()
		defer r.guests.calm.mu.Unlock()
		return r.guests.calm.clients[netip.MustParsePrefix("127.0.0.1/32")] != nil
	})
	if a := r.dialH2(nil).get("/"); a.status != "200" {
		t.Errorf("the next connection got %+v", a)
	}
}
