package ingress

import (
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/balance"
)

// endpoint is one address of an upstream, and the time until which it is left out.
type endpoint struct {
	addr      string
	hash      uint64       // of the address
	downUntil atomic.Int64 // Unix nanoseconds
	load      balance.Load // requests under way, and how soon they were answered
}

// resolved is a list of addresses and, by the same index, their endpoints. No other list of the Server has its number.
type resolved struct {
	number    uint64
	addrs     []netip.AddrPort
	endpoints []*endpoint
	// start returns the index of the endpoint that is asked first for a client's request.
	start func(client netip.Addr) int
}

// endpoints returns those that serve u's Service port at the moment. The result is the same as long as
// Options.Endpoints returns the same slice.
func (u *upstream) endpoints() *resolved {
	addrs := u.server.resolve(u.port)
	if r := u.resolved.Load(); r != nil && identical(r.addrs, addrs) {
		return r
	}
	u.resolving.Lock()
	defer u.resolving.Unlock()
	old := u.resolved.Load()
	if old != nil && identical(old.addrs, addrs) {
		return old
	}
	r := old.next(addrs, &u.server.source)
	r.number, r.start = u.server.lists.Add(1), u.starting(r.endpoints)
	u.resolved.Store(r)
	return r
}

// next returns addrs with their endpoints. Addresses that r has keep their endpoint; others are new, if r has any.
func (r *resolved) next(addrs []netip.AddrPort, source *balance.Source) *resolved {
	known := map[netip.AddrPort]*endpoint{}
	if r != nil {
		for i, a := range r.addrs {
			known[a] = r.endpoints[i]
		}
	}
	out := &resolved{addrs: addrs, endpoints: make([]*endpoint, len(addrs))}
	for i, a := range addrs {
		if out.endpoints[i] = known[a]; out.endpoints[i] == nil {
			text := a.String()
			out.endpoints[i] = &endpoint{addr: text, hash: hashOf([]byte(text))}
			if len(known) > 0 {
				out.endpoints[i].load.Come(source.Now())
			}
		}
	}
	return out
}

// starting returns how the first endpoint for a request is chosen. Without a method, endpoints take turns: requests of
// one client are many, and each may go to another endpoint. With Maglev it is a function of the client and the
// endpoints alone, the same on every node (rendezvous hashing).
func (u *upstream) starting(list []*endpoint) func(client netip.Addr) int {
	m := balance.Hash
	if len(list) > 0 {
		m = u.server.method(u.port)
	}
	switch m {
	case balance.Hash:
		return func(netip.Addr) int { return int(u.next.Add(1) % uint32(len(list))) }
	case balance.Maglev:
		return func(client netip.Addr) int { return nearest(list, client) }
	}
	loads := make([]*balance.Load, len(list))
	for i, e := range list {
		loads[i] = &e.load
	}
	picker := u.server.source.New(m, len(list), loads)
	return func(netip.Addr) int { return picker.Pick() }
}

// nearest returns the index of the endpoint with the greatest weight for a client.
func nearest(list []*endpoint, client netip.Addr) int {
	a := client.As16()
	h, best, most := hashOf(a[:]), 0, uint64(0)
	for i, e := range list {
		if w := mix(h ^ e.hash); w > most {
			best, most = i, w
		}
	}
	return best
}

// hashOf returns the FNV-1a hash of b.
func hashOf(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// mix makes every bit of the result depend on every bit of x (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// visit is a request under way at an endpoint.
type visit struct {
	load     *balance.Load
	source   *balance.Source
	began    time.Duration
	answered bool
}

// begin counts a request to an endpoint.
func (e *endpoint) begin(source *balance.Source) visit {
	e.load.Begin()
	return visit{load: &e.load, source: source, began: source.Now()}
}

// answer records the header of the response. An endpoint that says that it cannot serve is quick to say so, and is to
// get no more requests for that.
func (a *visit) answer(code int) {
	now := a.source.Now()
	took := now - a.began
	if code >= http.StatusBadGateway && code <= http.StatusGatewayTimeout {
		took = max(took, balance.RefusedTime)
	}
	a.answered = true
	a.load.Answered(took, now)
}

// end counts the end of the request. It may be called again.
func (a *visit) end() {
	if a.load != nil {
		a.load.End(a.answered)
		a.load = nil
	}
}
