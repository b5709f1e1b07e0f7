package ingress

import (
	"net/netip"
	"sync/atomic"
)

// endpoint is one address of an upstream, and the time until which it is left out.
type endpoint struct {
	addr      string
	downUntil atomic.Int64 // Unix nanoseconds
}

// resolved is a list of addresses and, by the same index, their endpoints.
type resolved struct {
	addrs     []netip.AddrPort
	endpoints []*endpoint
}

// endpoints returns those that serve u's Service port at the moment. The result is the same slice as long as
// Options.Endpoints returns the same slice.
func (u *upstream) endpoints() []*endpoint {
	addrs := u.server.resolve(u.port)
	if r := u.resolved.Load(); r != nil && identical(r.addrs, addrs) {
		return r.endpoints
	}
	u.resolving.Lock()
	defer u.resolving.Unlock()
	old := u.resolved.Load()
	if old != nil && identical(old.addrs, addrs) {
		return old.endpoints
	}
	r := old.next(addrs)
	u.resolved.Store(r)
	return r.endpoints
}

// next returns addrs with their endpoints. Addresses that r has keep their endpoint.
func (r *resolved) next(addrs []netip.AddrPort) *resolved {
	known := map[netip.AddrPort]*endpoint{}
	if r != nil {
		for i, a := range r.addrs {
			known[a] = r.endpoints[i]
		}
	}
	out := &resolved{addrs: addrs, endpoints: make([]*endpoint, len(addrs))}
	for i, a := range addrs {
		if out.endpoints[i] = known[a]; out.endpoints[i] == nil {
			out.endpoints[i] = &endpoint{addr: a.String()}
		}
	}
	return out
}
