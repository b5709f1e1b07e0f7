package advertise

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pools/block"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
)

// Stage makes the Plan of a node from successive snapshots. The zero value is ready.
type Stage struct {
	objs     kube.Objects // those that same compares: others would be kept alive by it
	services roll.List[*services.Service]
	egress   []announce.Link
	plan     *announce.Plan
	problems []kube.Problem
	ranks    ranks
}

// Of returns the Plan of a node. served are the Services with their endpoints and addresses as they are served, and
// egress the addresses from which pods leave. The Plan is the same pointer as long as nothing has changed.
func (s *Stage) Of(node string, objs *kube.Objects, served roll.List[*services.Service], egress []announce.Link, say *kube.Report) *announce.Plan {
	if s.plan == nil || !s.same(objs) || !s.alike(served) || !kube.Same(s.egress, egress) {
		var found kube.Report
		w := work{node: node, objs: objs, say: &found, plan: &announce.Plan{Node: node, Links: slices.Clone(egress)}, ranks: s.ranks.next()}
		w.make(served)
		*s = Stage{egress: egress, plan: w.plan, problems: found.Problems, ranks: w.ranks, objs: kube.Objects{
			Nodes: objs.Nodes, Services: objs.Services, AddressPools: objs.AddressPools,
			L2Advertisements: objs.L2Advertisements, BGPPeers: objs.BGPPeers, BGPAdvertisements: objs.BGPAdvertisements,
		}}
	}
	s.services = served
	say.Problems = append(say.Problems, s.problems...)
	return s.plan
}

func (s *Stage) same(objs *kube.Objects) bool {
	return kube.Same(s.objs.Nodes, objs.Nodes) && sameBalancers(s.objs.Services, objs.Services) && kube.Same(s.objs.AddressPools, objs.AddressPools) &&
		kube.Same(s.objs.L2Advertisements, objs.L2Advertisements) && kube.Same(s.objs.BGPPeers, objs.BGPPeers) &&
		kube.Same(s.objs.BGPAdvertisements, objs.BGPAdvertisements)
}

// alike reports whether nothing is announced of the Services that have changed: those without external addresses.
func (s *Stage) alike(served roll.List[*services.Service]) bool {
	external := func(_ int, svc *services.Service) bool { return len(svc.ExternalIPs) > 0 }
	changed, ok := roll.Replaced(s.services, served)
	if ok {
		return !slices.ContainsFunc(changed, func(i int) bool { return external(i, s.services.At(i)) || external(i, served.At(i)) })
	}
	next, stop := iter.Pull2(filter(s.services.All(), external))
	defer stop()
	for _, svc := range filter(served.All(), external) {
		if _, was, there := next(); !there || was != svc {
			return false
		}
	}
	_, _, more := next()
	return !more
}

// sameBalancers reports whether two lists have the same Services of type LoadBalancer, as far as advertisements look at
// them: by name and labels.
func sameBalancers(old, now []*corev1.Service) bool {
	if kube.Same(old, now) {
		return true
	}
	balancer := func(_ int, svc *corev1.Service) bool { return svc.Spec.Type == corev1.ServiceTypeLoadBalancer }
	next, stop := iter.Pull2(filter(slices.All(old), balancer))
	defer stop()
	for _, svc := range filter(slices.All(now), balancer) {
		_, was, there := next()
		if !there || was != svc && (was.Namespace != svc.Namespace || was.Name != svc.Name || !maps.Equal(was.Labels, svc.Labels)) {
			return false
		}
	}
	_, _, more := next()
	return !more
}

// filter yields what is of a sequence.
func filter[K, V any](all iter.Seq2[K, V], is func(K, V) bool) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k, v := range all {
			if is(k, v) && !yield(k, v) {
				return
			}
		}
	}
}

// work is the making of one Plan.
type work struct {
	node  string
	objs  *kube.Objects
	say   *kube.Report
	plan  *announce.Plan
	known map[string]bool // the names of Nodes
	addrs []*address
	ranks ranks
}

// address is an address of a pool, with the Services that are there.
type address struct {
	netip.Addr
	pool     string
	services []member
}

type member struct {
	*services.Service
	labels labels.Set
}

func (w *work) make(served roll.List[*services.Service]) {
	o := w.objs
	if len(o.L2Advertisements)+len(o.BGPAdvertisements)+len(o.BGPPeers)+len(w.plan.Links) == 0 {
		return
	}
	w.collect(served)
	w.known = make(map[string]bool, len(o.Nodes))
	for _, n := range o.Nodes {
		w.known[n.Name] = true
		if down(n) {
			w.plan.Down = append(w.plan.Down, n.Name)
		}
	}
	slices.Sort(w.plan.Down)
	w.links()
	w.readPeers()
	w.routes()
}

// collect finds the addresses of pools that Services have.
func (w *work) collect(served roll.List[*services.Service]) {
	poolOf := block.Finder(w.objs.AddressPools)
	objs := make(map[kube.Ref]*corev1.Service, len(w.objs.Services))
	for _, svc := range w.objs.Services {
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			objs[kube.Ref{Namespace: svc.Namespace, Name: svc.Name}] = svc
		}
	}
	known := map[netip.Addr]*address{}
	for _, svc := range served.All() {
		obj := objs[kube.Ref{Namespace: svc.Namespace, Name: svc.Name}]
		if obj == nil {
			continue
		}
		for _, a := range svc.ExternalIPs {
			pool := poolOf(a)
			if pool == "" {
				continue
			}
			at := known[a]
			if at == nil {
				at = &address{Addr: a, pool: pool}
				known[a] = at
				w.addrs = append(w.addrs, at)
			}
			at.services = append(at.services, member{svc, obj.Labels})
		}
	}
	slices.SortFunc(w.addrs, func(a, b *address) int { return a.Compare(b.Addr) })
}

// names returns the names of the Services at an address.
func (a *address) names() (list []string) {
	for _, m := range a.services {
		list = append(list, m.Namespace+"/"+m.Name)
	}
	return list
}

// needs says where the Services at an address can be served.
func (w *work) needs(a *address) []announce.Needs {
	list := make([]announce.Needs, len(a.services))
	for i, m := range a.services {
		if list[i].Local = m.ExternalLocal; m.ExternalLocal {
			list[i].Nodes = w.nodesOf(a, m)
		}
	}
	return list
}

// nodesOf returns the nodes with ready endpoints of a Service. Where no node has one, it returns those whose endpoints
// terminate and still serve: clients are sent to them until they end (KEP-1669), and their connections come by the
// address.
// Others than Nodes are left out, since users write any name into EndpointSlices.
func (w *work) nodesOf(a *address, m member) []string {
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
		if w.known[e.Node] {
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

// nodes returns the nodes for the advertisements of which one has to select a node.
func (w *work) nodes(ads []*ad) []announce.Node {
	list := make([]announce.Node, 0, len(w.objs.Nodes))
	for _, n := range w.objs.Nodes {
		_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
		stock := n.Annotations[kube.StockAnnotation] == "true" || n.Labels[kube.ExternalLabel] == "true"
		selected := slices.ContainsFunc(ads, func(a *ad) bool { return a.on.Matches(labels.Set(n.Labels)) })
		list = append(list, announce.Node{Name: n.Name, Excluded: excluded || stock || !selected, Leaving: kube.Leaving(n)})
	}
	return list
}

func down(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue
	})
}

// self returns the labels of this node; nil when there is no such Node.
func (w *work) self() labels.Set {
	for _, n := range w.objs.Nodes {
		if n.Name == w.node {
			return labels.Set(n.Labels)
		}
	}
	return nil
}

// ad is an advertisement, read.
type ad struct {
	name     string   // with its kind
	pools    []string // nil: all
	services labels.Selector
	on       labels.Selector
	l2       *v1alpha1.L2Advertisement // nil for one of BGP
}

// read returns what an advertisement says, and nil when it cannot be understood.
func (w *work) read(obj kube.Object, a *v1alpha1.Announced) *ad {
	ref := kube.RefOf(obj)
	out := &ad{name: ref.String(), pools: a.Pools}
	for _, name := range a.Pools {
		if !slices.ContainsFunc(w.objs.AddressPools, func(p *v1alpha1.AddressPool) bool { return p.Name == name }) {
			w.say.Warnf(ref, "spec.pools", "there is no AddressPool %q: make it, or remove the name", name)
		}
	}
	var ok, also bool
	out.services, ok = w.selector(ref, "spec.serviceSelector", a.ServiceSelector)
	out.on, also = w.selector(ref, "spec.nodeSelector", a.NodeSelector)
	if !ok || !also {
		return nil
	}
	return out
}

// selector returns a selector that selects everything for nil.
func (w *work) selector(ref kube.Ref, field string, s *metav1.LabelSelector) (labels.Selector, bool) {
	if s == nil {
		return labels.Everything(), true
	}
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		w.say.Errorf(ref, field, "it cannot be understood, so the object is not used: %v", err)
		return nil, false
	}
	return sel, true
}

// covers reports whether an advertisement is for an address.
func (a *ad) covers(at *address) bool {
	return (len(a.pools) == 0 || slices.Contains(a.pools, at.pool)) &&
		slices.ContainsFunc(at.services, func(m member) bool { return a.services.Matches(m.labels) })
}

func (w *work) links() {
	var ads []*ad
	for _, obj := range w.objs.L2Advertisements {
		if a := w.read(obj, &obj.Spec.Announced); a != nil {
			a.l2 = obj
			ads = append(ads, a)
		}
	}
	self := w.self()
	egress := map[netip.Addr]bool{}
	for _, l := range w.plan.Links {
		egress[l.Addr] = true
	}
	for _, at := range w.addrs {
		var covering []*ad
		var interfaces []string
		for _, a := range ads {
			if !a.covers(at) {
				continue
			}
			covering = append(covering, a)
			if self != nil && a.on.Matches(self) {
				interfaces = append(interfaces, a.l2.Spec.Interfaces...)
			}
		}
		if len(covering) == 0 || egress[at.Addr] {
			continue // an EgressAddress has it, as is told there
		}
		slices.Sort(interfaces)
		w.plan.Links = append(w.plan.Links, announce.Link{
			Addr: at.Addr, Services: at.names(), Interfaces: slices.Compact(interfaces),
			Ranked: w.ranks.of(at.Addr, w.eligible(covering, at)),
		})
	}
}

func (w *work) routes() {
	type key struct {
		prefix netip.Prefix
		peer   string
	}
	routes := map[key]*announce.Route{}
	// A router may know another site with an address of which nothing here serves.
	served := slices.DeleteFunc(slices.Clone(w.addrs), func(at *address) bool { return !at.serves() })
	for _, obj := range w.objs.BGPAdvertisements {
		a := w.read(obj, &obj.Spec.Announced)
		if a == nil {
			continue
		}
		attributes := w.attributes(obj)
		for _, at := range served {
			if !a.covers(at) || !slices.Contains(w.eligible([]*ad{a}, at), w.node) {
				continue
			}
			prefix := aggregate(at.Addr, &obj.Spec)
			for i := range w.plan.Peers {
				peer := w.plan.Peers[i].Name
				if len(obj.Spec.Peers) > 0 && !slices.Contains(obj.Spec.Peers, peer) {
					continue
				}
				k := key{prefix, peer}
				if routes[k] == nil {
					routes[k] = &announce.Route{Prefix: prefix, Peer: peer, LocalPref: attributes.LocalPref}
				}
				add(routes[k], at.names(), attributes)
			}
		}
	}
	for _, r := range routes {
		w.plan.Routes = append(w.plan.Routes, *r)
	}
	slices.SortFunc(w.plan.Routes, func(a, b announce.Route) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Peer, b.Peer))
	})
}

func aggregate(a netip.Addr, s *v1alpha1.BGPAdvertisementSpec) netip.Prefix {
	bits := int(s.AggregationLengthV6)
	if a.Is4() {
		bits = int(s.AggregationLength)
	}
	if bits < 1 || bits > a.BitLen() { // an object without the API server's defaults
		bits = a.BitLen()
	}
	return netip.PrefixFrom(a, bits).Masked()
}
