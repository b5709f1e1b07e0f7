package advertise

import (
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/services"
)

// address is an address of a pool, with the Services that are there and what follows for it. It does not change once
// that is decided.
type address struct {
	netip.Addr
	pool     string
	services []member // sorted
	// link is what is announced of it by ARP and NDP, nil for nothing. eligible are the nodes that may, in no order.
	link     *announce.Link
	eligible []string
	// told are the advertisements by which this node tells routers of it.
	told []*ad
}

type member struct {
	*services.Service
	labels labels.Set
}

func compareAddresses(a, b *address) int { return a.Compare(b.Addr) }

// find returns the address of a sorted list that is the same as another, or nil.
func find(list []*address, at *address) *address {
	i, there := slices.BinarySearchFunc(list, at, compareAddresses)
	if !there {
		return nil
	}
	return list[i]
}

// isFree reports whether there is no Service at the address.
func (a *address) isFree() bool { return len(a.services) == 0 }

// keep adds the Services of a list whose names are not among changed, which is sorted.
func (a *address) keep(list []member, changed []kube.Ref) {
	for _, m := range list {
		if _, is := slices.BinarySearchFunc(changed, servedName(m.Service), kube.Ref.Compare); !is {
			a.services = append(a.services, m)
		}
	}
	slices.SortStableFunc(a.services, func(a, b member) int { return compareServed(a.Service, b.Service) })
}

// decide finds what is announced of an address. What it has in common with the address as it was is the same memory;
// before is nil for an address that is new.
func (r *rules) decide(at, before *address) {
	var covering []*ad
	var interfaces []string
	for _, a := range r.links {
		if a.covers(at) {
			covering, interfaces = append(covering, a), append(interfaces, a.interfaces...)
		}
	}
	if len(covering) > 0 {
		slices.Sort(interfaces)
		at.eligible = r.eligible(covering, at)
		at.link = &announce.Link{Addr: at.Addr, Services: at.names(), Interfaces: slices.Compact(interfaces), Ranked: at.ranked(before)}
		if before != nil && before.link != nil && before.link.Equal(at.link) {
			at.link = before.link
		}
	}
	// A router may know another site with an address of which nothing here serves.
	if len(r.routes) == 0 || !at.serves() {
		return
	}
	for _, a := range r.routes {
		if a.covers(at) && slices.Contains(r.eligible([]*ad{a}, at), r.node) {
			at.told = append(at.told, a)
		}
	}
}

// prefixes adds the prefixes of which routers are told for an address.
func (a *address) prefixes(all map[netip.Prefix]bool) {
	for _, ad := range a.told {
		all[ad.aggregate(a.Addr)] = true
	}
}

// names returns the names of the Services at an address.
func (a *address) names() (list []string) {
	for _, m := range a.services {
		list = append(list, m.Namespace+"/"+m.Name)
	}
	return list
}

// needs says where the Services at an address can be served.
func (r *rules) needs(a *address) []announce.Needs {
	list := make([]announce.Needs, len(a.services))
	for i, m := range a.services {
		if list[i].Local = m.ExternalLocal; m.ExternalLocal {
			list[i].Nodes = r.nodesOf(a, m)
		}
	}
	return list
}

// nodesOf returns the nodes with ready endpoints of a Service. Where no node has one, it returns those whose endpoints
// terminate and still serve: clients are sent to them until they end (KEP-1669), and their connections come by the
// address.
// Others than Nodes are left out, since users write any name into EndpointSlices.
func (r *rules) nodesOf(a *address, m member) []string {
	isReady, ready, ending := false, map[string]bool{}, map[string]bool{}
	for e := range m.All() {
		to := ending
		switch {
		case e.Addr.Is4() != a.Is4():
			continue
		case e.Ready || m.PublishNotReady:
			isReady, to = true, ready
		case !e.Serving || !e.Terminating:
			continue
		}
		if r.known[e.Node] {
			to[e.Node] = true
		}
	}
	if !isReady {
		ready = ending
	}
	return slices.Sorted(maps.Keys(ready))
}

// serves reports whether a Service at the address has an endpoint at all.
func (a *address) serves() bool {
	return slices.ContainsFunc(a.services, func(m member) bool {
		for e := range m.All() {
			if e.Addr.Is4() == a.Is4() && (e.Ready || m.PublishNotReady || e.Serving && e.Terminating) {
				return true
			}
		}
		return false
	})
}
