package advertise

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
)

// Stage makes the Plan of a node from successive snapshots. What changes of load balancers costs what is announced of
// them, and a copy of the Plan's lists. The zero value is ready.
type Stage struct {
	rules    *rules // nil before the first Plan
	objs     []*corev1.Service
	services roll.List[*services.Service]
	egress   []announce.Link
	addrs    []*address // sorted
	plan     *announce.Plan
}

// Of returns the Plan of a node, which is always the same node. served are the Services with their endpoints and
// addresses as they are served, and egress the addresses from which pods leave. Services are sorted by namespace and
// name, in objs and in served. The Plan is the same pointer as long as it says the same.
func (s *Stage) Of(node string, objs *kube.Objects, served roll.List[*services.Service], egress []announce.Link, say *kube.Report) *announce.Plan {
	next := &Stage{rules: s.rules, objs: objs.Services, services: served, egress: egress, addrs: s.addrs, plan: s.plan}
	switch {
	case s.rules == nil || !s.rules.follow(objs):
		next.rules = read(node, objs, s.rules)
		next.plan = next.replan(s, next.balancers())
	default:
		if names := next.changed(s); len(names) > 0 || !kube.Same(s.egress, egress) {
			next.plan = next.replan(s, names)
		}
	}
	*s = *next
	say.Problems = append(say.Problems, s.rules.say.Problems...)
	return s.plan
}

// balancers returns the names of all Services of type LoadBalancer, sorted.
func (s *Stage) balancers() (names []kube.Ref) {
	for _, svc := range s.objs {
		if isBalancer(svc) {
			names = append(names, nameOf(svc))
		}
	}
	return names
}

// changed returns the names of the Services of type LoadBalancer that differ from the last snapshot, sorted.
func (s *Stage) changed(last *Stage) (names []kube.Ref) {
	if !kube.Same(last.objs, s.objs) {
		note := func(svc *corev1.Service) {
			if isBalancer(svc) {
				names = append(names, nameOf(svc))
			}
		}
		roll.Walk(last.objs, s.objs, compareObjects, func(i, j, _ int) {
			switch {
			case j < 0:
				note(last.objs[i])
			case i < 0:
				note(s.objs[j])
			}
		})
	}
	gone, come := roll.Difference(last.services, s.services, compareServed)
	for _, svc := range slices.Concat(gone, come) {
		if len(svc.ExternalIPs) > 0 {
			names = append(names, servedName(svc))
		}
	}
	slices.SortFunc(names, kube.Ref.Compare)
	return slices.Compact(names)
}

// replan returns the Plan and sets the addresses. Load balancers of other names than names are what they were in the
// last snapshot; where the rules are others, names are all.
func (s *Stage) replan(last *Stage, names []kube.Ref) *announce.Plan {
	stay, routes := []*address(nil), []announce.Route(nil)
	if s.rules == last.rules {
		stay, routes = last.addrs, last.plan.Routes
	}
	if s.rules.silent() {
		names = nil
	}
	come := s.look(last, names)
	again := map[netip.Prefix]bool{} // whose routes are made anew
	for _, at := range come {
		at.prefixes(again)
		if was := find(stay, at); was != nil {
			was.prefixes(again)
		}
	}
	stay = slices.DeleteFunc(slices.Clone(stay), func(at *address) bool { return find(come, at) != nil })
	s.addrs = merged(stay, slices.DeleteFunc(come, (*address).isFree), compareAddresses)
	routes = slices.DeleteFunc(slices.Clone(routes), func(r announce.Route) bool { return again[r.Prefix] })
	var told []announce.Route
	for p := range again {
		told = append(told, s.rules.routesOf(p, s.addrs)...)
	}
	slices.SortFunc(told, compareRoutes)
	plan := &announce.Plan{Node: s.rules.node, Links: s.links(), Peers: s.rules.peers, Routes: merged(routes, told, compareRoutes)}
	if s.rules.any() || len(s.egress) > 0 {
		plan.Down = s.rules.down
	}
	if last.plan != nil && plan.Equal(last.plan) {
		return last.plan
	}
	return plan
}

// look returns the addresses at which load balancers of names are or were, as they are now: without Services where none
// is left. The list is sorted.
func (s *Stage) look(last *Stage, names []kube.Ref) []*address {
	found := map[netip.Addr]*address{}
	add := func(a netip.Addr, list ...member) {
		if found[a] == nil {
			pool := s.rules.poolOf(a)
			if pool == "" {
				return
			}
			found[a] = &address{Addr: a, pool: pool}
		}
		found[a].services = append(found[a].services, list...)
	}
	for _, n := range names {
		if was := serviceOf(last.services, n); was != nil && s.rules == last.rules {
			for _, a := range was.ExternalIPs {
				add(a)
			}
		}
		now := serviceOf(s.services, n)
		i, there := slices.BinarySearchFunc(s.objs, n, func(svc *corev1.Service, n kube.Ref) int { return nameOf(svc).Compare(n) })
		if now == nil || !there || !isBalancer(s.objs[i]) {
			continue
		}
		for _, a := range now.ExternalIPs {
			add(a, member{now, s.objs[i].Labels})
		}
	}
	list := slices.SortedFunc(maps.Values(found), compareAddresses)
	for _, at := range list {
		before := find(last.addrs, at)
		if before != nil && s.rules == last.rules {
			at.keep(before.services, names)
		}
		if !at.isFree() {
			s.rules.decide(at, before)
		}
	}
	return list
}

// links returns what is announced by ARP and NDP. What an EgressAddress has is its own, as is told there.
func (s *Stage) links() []announce.Link {
	egress := make(map[netip.Addr]bool, len(s.egress))
	for i := range s.egress {
		egress[s.egress[i].Addr] = true
	}
	list := slices.Grow(slices.Clone(s.egress), len(s.addrs))
	for _, at := range s.addrs {
		if at.link != nil && !egress[at.Addr] {
			list = append(list, *at.link)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list
}

func isBalancer(svc *corev1.Service) bool { return svc.Spec.Type == corev1.ServiceTypeLoadBalancer }

func nameOf(svc *corev1.Service) kube.Ref {
	return kube.Ref{Namespace: svc.Namespace, Name: svc.Name}
}

func servedName(svc *services.Service) kube.Ref {
	return kube.Ref{Namespace: svc.Namespace, Name: svc.Name}
}

func compareObjects(a, b *corev1.Service) int { return nameOf(a).Compare(nameOf(b)) }

func compareServed(a, b *services.Service) int { return servedName(a).Compare(servedName(b)) }

// serviceOf returns the Service of a name, or nil.
func serviceOf(list roll.List[*services.Service], name kube.Ref) *services.Service {
	i, there := list.Search(func(svc *services.Service) int { return servedName(svc).Compare(name) })
	if !there {
		return nil
	}
	return list.At(i)
}

// merged returns the elements of two sorted lists in order.
func merged[T any](a, b []T, compare func(a, b T) int) []T {
	if len(a)+len(b) == 0 {
		return nil
	}
	out := make([]T, 0, len(a)+len(b))
	for _, x := range b {
		n, _ := slices.BinarySearchFunc(a, x, compare)
		out, a = append(append(out, a[:n]...), x), a[n:]
	}
	return append(out, a...)
}
