package pools

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pools/block"
)

// complete gives a Service what it lacks.
func (w *work) complete(s *wish) {
	nodes := s.pool != nil && s.pool.nodes && len(s.request.addrs) == 0
	switch {
	case !s.understood && !nodes: // what cannot be understood takes nothing away
	case len(s.request.addrs) > 0:
		if w.giveAsked(s) && len(s.addrs) < len(s.families) && !s.isOnNodes() { // of the other family any will do
			w.giveAny(s)
		}
	case nodes && (s.request.pool == "" || s.request.pool == s.pool.obj.Name):
		w.giveNodes(s, s.pool)
	case len(s.addrs) < max(1, len(s.families)):
		w.giveAny(s)
	}
	if s.reason != "" && s.reason != BadRequest {
		w.say.Errorf(kube.RefOf(s.svc), "status.loadBalancer", "%s", s.message)
	}
}

// giveAsked gives a Service the addresses that it asks for, all of them or none. It reports whether the Service has
// them.
func (w *work) giveAsked(s *wish) bool {
	var got []netip.Addr
	var from *pool
	for _, a := range s.request.addrs {
		if slices.Contains(s.addrs, a) {
			continue
		}
		p := w.poolOf(a)
		switch {
		case p == nil:
			s.lacks(NoPool, "%s, which it asks for, is in no AddressPool: ask for another, or make a pool with it", a)
		case s.request.pool != "" && s.request.pool != p.obj.Name:
			s.lacks(NoPool, "%s, which it asks for, is in AddressPool %q and not in %q, which it asks for, too: change one of the two", a, p.obj.Name, s.request.pool)
		case !p.selects(s.svc, w.namespaces):
			s.lacks(NoPool, "AddressPool %q, which has %s, is not for this Service: see its selectors", p.obj.Name, a)
		default:
			other := w.claim(s, a)
			if other == nil {
				got, from = append(got, a), p
				continue
			}
			s.lacks(Taken, "%s, which it asks for, belongs to Service %s/%s: ask for another, or share it (%s)", a, other.svc.Namespace, other.svc.Name, kube.SharedAddressAnnotation)
		}
		w.leave(s, got)
		return false
	}
	w.gets(s, got, from)
	return true
}

// candidates returns the pools for a Service that asks for no address of a family, in the order in which they are
// tried. The pool of an address that it asks for is one of them.
func (w *work) candidates(s *wish) (list []*pool) {
	for _, p := range w.pools {
		asked := s.request.pool == p.obj.Name || len(s.request.addrs) > 0 && p == s.pool
		if (asked || s.request.pool == "" && p.auto()) && p.selects(s.svc, w.namespaces) {
			list = append(list, p)
		}
	}
	// What it has decides first. Then a pool with all families comes before others.
	slices.SortStableFunc(list, func(a, b *pool) int {
		return cmp.Or(-compareBool(a == s.pool, b == s.pool), -compareBool(w.hasAll(a, s), w.hasAll(b, s)))
	})
	return list
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// hasAll reports whether a pool has addresses of all families of a Service, in use or not.
func (w *work) hasAll(p *pool, s *wish) bool {
	for _, is4 := range s.families {
		same := func(b block.Block) bool { return b.First.Is4() == is4 }
		if !slices.ContainsFunc(p.blocks, same) && !slices.ContainsFunc(p.addrs, func(a netip.Addr) bool { return a.Is4() == is4 }) {
			return false
		}
	}
	return true
}

// giveAny gives a Service an address of each family that it lacks.
func (w *work) giveAny(s *wish) {
	list := w.candidates(s)
	if len(list) == 0 {
		if len(s.addrs) == 0 || s.both {
			s.lacks(NoPool, "%s", s.noPool(w))
		}
		return
	}
	own := slices.DeleteFunc(slices.Clone(list), func(p *pool) bool { return p.nodes })
	tried := false // all pools with addresses of their own are one try
	for _, p := range list {
		switch {
		case p.nodes && len(s.addrs) == 0:
			if w.giveNodes(s, p) {
				return
			}
		case !p.nodes && !tried:
			if tried = true; w.giveOwn(s, own) {
				return
			}
		}
	}
	if s.reason == "" && (len(s.addrs) == 0 || s.both) {
		s.lacks(Exhausted, "no address is left for it in %s: remove Services, or add addresses%s", names(list), map[bool]string{true: " of both families, which it requires"}[s.both])
	}
}

// giveOwn gives a Service an address of each family that it lacks, out of pools with addresses of their own. It reports
// whether the Service has what it must have then, and takes nothing otherwise.
func (w *work) giveOwn(s *wish, list []*pool) bool {
	var got []netip.Addr
	var from *pool
	marks := make([]mark, len(list))
	for i, p := range list {
		marks[i] = p.mark()
	}
	for _, is4 := range s.families {
		if slices.ContainsFunc(s.addrs, func(a netip.Addr) bool { return a.Is4() == is4 }) {
			continue
		}
		for _, p := range list {
			if a, ok := w.take(s, p, is4); ok {
				got, from = append(got, a), cmp.Or(from, p)
				break
			}
		}
	}
	have := len(s.addrs) + len(got)
	if have == 0 || s.both && have < len(s.families) {
		w.leave(s, got)
		for i, p := range list {
			p.reset(marks[i])
		}
		return false
	}
	w.gets(s, got, from)
	return true
}

// noPool says why no pool is for a Service.
func (s *wish) noPool(w *work) string {
	if s.request.pool == "" {
		return "no AddressPool is for it: make one, or change the selectors of one (and its autoAssign)"
	}
	for _, p := range w.pools {
		if p.obj.Name == s.request.pool {
			return fmt.Sprintf("AddressPool %q, which it asks for, is not for this Service: see its selectors", s.request.pool)
		}
	}
	return fmt.Sprintf("there is no AddressPool %q, which it asks for: make it, or ask for another", s.request.pool)
}

// take claims an address of a pool: one that the Services with its key have already, if its ports are free there, or
// else one that nobody has.
func (w *work) take(s *wish, p *pool, is4 bool) (netip.Addr, bool) {
	if s.key != "" {
		list := w.shared[s.of]
		for _, a := range list[:min(len(list), mostTried)] {
			if a.Is4() == is4 && p.holds(a) && w.claim(s, a) == nil {
				return a, true
			}
		}
	}
	a, ok := w.free(p, is4)
	if ok {
		w.claim(s, a)
	}
	return a, ok
}

// mostTried is how many shared addresses are tried for a Service before it gets one of its own, so that thousands of
// Services that want the same port cost no more than the product.
const mostTried = 256

// giveNodes gives a Service the addresses of all nodes of a pool, and reports whether it could. What the Service asks
// for no longer it keeps until then.
func (w *work) giveNodes(s *wish, p *pool) bool {
	w.leave(s, s.old) // which may be among them
	var got []netip.Addr
	for _, a := range p.addrs {
		if !slices.Contains(s.families, a.Is4()) {
			continue
		}
		if other := w.claim(s, a); other != nil {
			w.leave(s, got)
			w.reclaim(s)
			s.lacks(Taken, "Service %s/%s has one of its ports on the nodes of AddressPool %q: choose other ports, or another pool", other.svc.Namespace, other.svc.Name, p.obj.Name)
			return false
		}
		got = append(got, a)
	}
	if len(got) == 0 {
		w.reclaim(s)
		s.lacks(Exhausted, "AddressPool %q has no node that is ready and has an address of the Service's family", p.obj.Name)
		return false
	}
	s.old, s.pool = nil, p
	w.gets(s, got, p)
	return true
}

// reclaim gives a Service back what it had left for others that it cannot have.
func (w *work) reclaim(s *wish) {
	for _, a := range s.old {
		w.stay(s, a) // nobody has taken it since
	}
}

func names(list []*pool) string {
	var b strings.Builder
	for i, p := range list {
		if i > 0 {
			b.WriteString(" and ")
		}
		if i == 3 {
			fmt.Fprintf(&b, "%d others", len(list)-i)
			break
		}
		fmt.Fprintf(&b, "AddressPool %q", p.obj.Name)
	}
	return b.String()
}
