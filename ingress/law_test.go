package ingress

import (
	"bufio"
	"io"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"

	"tapestry.dev/tapestry/addressing"
)

// TestDenied: a client that may reach none of many endpoints is judged for each of them once, over whichever of its
// connections it comes, and again when there are other endpoints or another Law. Others are judged as before.
func TestDenied(t *testing.T) {
	open := backend(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "open") })
	endpoints := func() *[]netip.AddrPort {
		list := make([]netip.AddrPort, 100)
		for i := range list {
			list[i] = open
		}
		return &list
	}
	var list atomic.Pointer[[]netip.AddrPort]
	var law atomic.Pointer[may]
	list.Store(endpoints())
	stranger, friend := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	forbids := func() *may {
		return &may{list: map[netip.Addr]map[netip.AddrPort]Permission{friend: {open: Permitted}}}
	}
	law.Store(forbids())
	r := newRig(t, Options{
		Endpoints: func(ServicePort) []netip.AddrPort { return *list.Load() },
		Law:       func() Law { return law.Load() },
	}, toWeb)
	get := func(as netip.Addr, code int, judged int64) {
		t.Helper()
		before := law.Load().asked.Load()
		c, err := r.from(as.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != code {
			t.Errorf("%v got %s, want %d", as, resp.Status, code)
		}
		if got := law.Load().asked.Load() - before; got != judged {
			t.Errorf("the request of %v took %d judgements, want %d", as, got, judged)
		}
	}
	get(stranger, http.StatusForbidden, 100)
	get(stranger, http.StatusForbidden, 1)
	get(friend, http.StatusOK, 1)
	list.Store(endpoints())
	get(stranger, http.StatusForbidden, 100)
	get(stranger, http.StatusForbidden, 1)
	law.Store(forbids())
	get(stranger, http.StatusForbidden, 100)
	law.Store(&may{list: map[netip.Addr]map[netip.AddrPort]Permission{stranger: {open: Permitted}}})
	get(stranger, http.StatusOK, 1)
	get(friend, http.StatusForbidden, 100)
	law.Store(&may{list: map[netip.Addr]map[netip.AddrPort]Permission{stranger: {open: Undecided}}})
	get(stranger, http.StatusServiceUnavailable, 100)
	get(stranger, http.StatusServiceUnavailable, 100) // it may be known at the next request
}

// TestDenials: what is remembered is bounded, and a client with many denials takes no other's.
func TestDenials(t *testing.T) {
	var d denials
	law, next := new(may), new(may)
	greedy, modest := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	add := func(l *may, a netip.Addr, n uint64) { d.add(l, denied{mayFor{l, a}, n}, addressing.Client(a)) }
	has := func(l *may, a netip.Addr, n uint64) bool { return d.has(l, denied{mayFor{l, a}, n}) }
	if has(law, modest, 1) {
		t.Error("a denial is known that nobody has added")
	}
	add(law, modest, 1)
	for n := range uint64(2 * mostDenials) {
		add(law, greedy, n)
		if !has(law, greedy, n) || !has(law, modest, 1) {
			t.Fatalf("after %d denials of one client: its last is known %v, the other's %v", n+1, has(law, greedy, n), has(law, modest, 1))
		}
	}
	if len(d.known) != mostDenials || has(law, greedy, 0) {
		t.Errorf("%d denials are known, the first of too many %v", len(d.known), has(law, greedy, 0))
	}
	add(law, modest, 1)
	add(law, modest, 2)
	if !has(law, modest, 2) || len(d.known) != mostDenials {
		t.Errorf("a client with one denial got no room for another; %d are known", len(d.known))
	}
	if has(next, modest, 1) {
		t.Error("a denial holds by another law")
	}
	add(next, modest, 1)
	if !has(next, modest, 1) || has(law, modest, 2) || len(d.known) != 1 {
		t.Errorf("%d denials are known by the next law, want one", len(d.known))
	}
}
