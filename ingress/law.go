package ingress

import (
	"net/netip"
	"sync"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/share"
)

// Permission says whether a client may reach an endpoint.
type Permission uint8

// The permissions. Where no endpoint is Permitted, the client gets 503 if one of them is Undecided, else 403.
const (
	Permitted Permission = iota
	Forbidden
	Undecided // too little is known of the endpoint: it is as one that is not ready
)

// Law says who may reach which endpoint. What it forbids it forbids for ever: when that changes there is another Law.
// Laws are compared by ==.
type Law interface {
	// For returns what the Law says about a client.
	For(client netip.Addr) Judge
}

// Judge is a Law for one client. Judges of one Law that are equal by == say the same.
type Judge interface {
	Permits(endpoint netip.AddrPort) Permission
}

// mostDenials bounds how many denials are remembered, of some 300 bytes each.
const mostDenials = 4096

// denials remembers which clients may reach none of the endpoints of a Service port. Without that, each request of such
// a client would be judged as often as there are endpoints, and others' would wait for that. It knows one Law at a
// time, so that it keeps no others in memory. A denial is charged to its client, and a client with many loses its own
// first (package share). The zero value is ready for use, by any number of goroutines.
type denials struct {
	mu    sync.Mutex // guards the rest
	law   Law
	known map[denied]*denial
	room  *share.Limit[netip.Prefix, *denial]
}

// denied is a client that may reach no endpoint of a list, which is known by its number.
type denied struct {
	judge Judge
	list  uint64
}

type denial struct {
	denied
	claim share.Claim[netip.Prefix, *denial]
}

// has reports whether a client is known to be denied.
func (d *denials) has(law Law, client denied) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.law != law {
		return false
	}
	known := d.known[client]
	if known == nil {
		return false
	}
	d.room.Touch(&known.claim)
	return true
}

// add remembers that a client is denied, if there is room, and forgets what was denied by another Law.
func (d *denials) add(law Law, client denied, owner netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.law != law || d.known == nil {
		d.law, d.known = law, map[denied]*denial{}
		d.room = share.New[netip.Prefix, *denial](share.Options[netip.Prefix]{Total: mostDenials})
	}
	if d.known[client] != nil {
		return
	}
	one := &denial{denied: client}
	one.claim.Value = one
	lost, ok := d.room.Acquire(&one.claim, owner)
	if lost != nil {
		delete(d.known, lost.Value.denied)
	}
	if ok {
		d.known[client] = one
	}
}

// verdict is what a Law says of a request, as far as it was asked. The zero value is that of no Law.
type verdict struct {
	law    Law // nil: everything is permitted
	client denied
	looked bool // denials was asked
	none   bool // the client may reach no endpoint, as denials knows
}

// verdict returns what the present Law says of the request, which is to go to one of a list of endpoints.
func (rq *request) verdict(list *resolved) (v verdict) {
	if v.law = rq.s.law(); v.law != nil {
		v.client = denied{v.law.For(rq.client.from()), list.number}
	}
	return v
}

// permits says whether the client may reach an endpoint. Once it may not, none may be set.
func (v *verdict) permits(endpoint netip.AddrPort, known *denials) Permission {
	if v.law == nil {
		return Permitted
	}
	p := v.client.judge.Permits(endpoint)
	if p == Forbidden && !v.looked {
		v.looked, v.none = true, known.has(v.law, v.client)
	}
	return p
}

// deny remembers that all endpoints are Forbidden to the client.
func (v *verdict) deny(client netip.Addr, known *denials) {
	if !v.none {
		known.add(v.law, v.client, addressing.Client(client))
	}
}
