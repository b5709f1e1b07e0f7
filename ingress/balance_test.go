package ingress

import (
	"net/http"
	"net/netip"
	"testing"
	"time"

	"tapestry.dev/tapestry/balance"
)

// chosen returns how often each of n endpoints is asked first, for 1,000 requests of so many clients. Each request is
// counted as under way.
func chosen(m balance.Method, n, clients int, prepare func([]*endpoint)) []int {
	s := New(Options{Method: func(ServicePort) balance.Method { return m }})
	var list []netip.AddrPort
	for i := range n {
		list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80))
	}
	s.resolve = func(ServicePort) []netip.AddrPort { return list }
	u := s.newUpstream(ServicePort{})
	r := u.endpoints()
	prepare(r.endpoints)
	got := make([]int, n)
	for i := range 1000 {
		c := i % clients
		e := r.start(netip.AddrFrom4([4]byte{192, 0, 2 + byte(c>>8), byte(c)}))
		got[e]++
		r.endpoints[e].begin(&s.source)
	}
	return got
}

func TestMethods(t *testing.T) {
	nothing := func([]*endpoint) {}
	for _, m := range []balance.Method{balance.Hash, balance.RoundRobin, balance.LeastConnections} {
		if got := chosen(m, 2, 1, nothing); got[0] != 500 {
			t.Errorf("%s: %v", m, got)
		}
	}
	if got := chosen(balance.Random, 2, 1, nothing); got[0] < 400 || got[0] > 600 {
		t.Errorf("random: %v", got)
	}
	// A client keeps its endpoint with Maglev, and many clients have different ones.
	for _, n := range chosen(balance.Maglev, 4, 1, nothing) {
		if n != 0 && n != 1000 {
			t.Errorf("one client went to several endpoints, %d times to one", n)
		}
	}
	for i, n := range chosen(balance.Maglev, 4, 1000, nothing) {
		if n < 180 || n > 320 {
			t.Errorf("endpoint %d got %d of 1,000 clients", i, n)
		}
	}
	busy := chosen(balance.LeastConnections, 2, 1, func(list []*endpoint) { list[1].load.Add(400, 0) })
	if busy[0] != 700 {
		t.Errorf("the one with 400 requests more got %d of 1,000, want 300", busy[1])
	}
}

// An endpoint that says at once that it cannot serve is not taken for a quick one.
func TestFailuresAreSlow(t *testing.T) {
	var source balance.Source
	now := time.Hour
	source.Clock = func() time.Duration { return now }
	var quick, failing endpoint
	for e, code := range map[*endpoint]int{&quick: http.StatusOK, &failing: http.StatusServiceUnavailable} {
		a := e.begin(&source)
		a.answer(code)
		a.end()
		a.end()
		if e.load.Open() != 0 {
			t.Errorf("%d requests are under way", e.load.Open())
		}
	}
	if q, f := quick.load.Time(now), failing.load.Time(now); q >= f || f < balance.RefusedTime*99/100 {
		t.Errorf("quick %v, failing %v", q, f)
	}
}

// Endpoints that come later start slowly, those of the beginning do not.
func TestNewEndpointsStartSlowly(t *testing.T) {
	s := New(Options{Method: func(ServicePort) balance.Method { return balance.LeastConnections }})
	list := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80")}
	s.resolve = func(ServicePort) []netip.AddrPort { return list }
	u := s.newUpstream(ServicePort{})
	first := u.endpoints().endpoints[0]
	list = append([]netip.AddrPort{netip.MustParseAddrPort("10.0.0.0:80")}, list...)
	r := u.endpoints()
	if r.endpoints[1] != first {
		t.Fatal("an endpoint that stays was made anew")
	}
	got := [2]int{}
	for range 100 {
		e := r.start(netip.Addr{})
		got[e]++
		r.endpoints[e].begin(&s.source)
	}
	if got[0] > 30 {
		t.Errorf("the new one got %d of 100", got[0])
	}
}
