package advertise

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pools/block"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// rules are what a node announces by, whatever Services there are: nodes, pools and advertisements, read.
type rules struct {
	node string
	objs kube.Objects // no others than they follow from, since they are kept alive
	say  kube.Report

	known  map[string]bool // the names of Nodes
	down   []string        // sorted
	self   labels.Set      // of this node; nil when there is no such Node
	poolOf func(netip.Addr) string
	links  []*ad // of ARP and NDP
	routes []*ad // of BGP
	// routers are those of all nodes, in the order of BGPPeers, and peers those of this node.
	routers []router
	peers   []announce.Peer
	sets    sets
}

// read returns the rules of a snapshot. before are those of the last one, or nil.
func read(node string, objs *kube.Objects, before *rules) *rules {
	r := &rules{
		node: node, known: make(map[string]bool, len(objs.Nodes)), poolOf: block.Finder(objs.AddressPools), sets: newSets(before),
		objs: kube.Objects{
			Nodes: objs.Nodes, AddressPools: objs.AddressPools,
			L2Advertisements: objs.L2Advertisements, BGPPeers: objs.BGPPeers, BGPAdvertisements: objs.BGPAdvertisements,
		},
	}
	for _, n := range objs.Nodes {
		r.known[n.Name] = true
		if down(n) {
			r.down = append(r.down, n.Name)
		}
		if n.Name == node {
			r.self = labels.Merge(labels.Set(n.Labels), nil) // not nil for a Node without labels
		}
	}
	slices.Sort(r.down)
	r.readRouters()
	r.choosePeers()
	for _, obj := range objs.L2Advertisements {
		if a := r.read(obj, &obj.Spec.Announced); a != nil {
			if r.self != nil && a.on.Matches(r.self) {
				a.interfaces = obj.Spec.Interfaces
			}
			r.links = append(r.links, a)
		}
	}
	for _, obj := range objs.BGPAdvertisements {
		if a := r.read(obj, &obj.Spec.Announced); a != nil {
			a.spec, a.attributes = &obj.Spec, r.attributes(obj)
			r.routes = append(r.routes, a)
		}
	}
	return r
}

// follow reports whether the rules follow from a snapshot, without comparing objects.
func (r *rules) follow(objs *kube.Objects) bool {
	o := &r.objs
	return kube.Same(o.Nodes, objs.Nodes) && kube.Same(o.AddressPools, objs.AddressPools) && kube.Same(o.L2Advertisements, objs.L2Advertisements) &&
		kube.Same(o.BGPPeers, objs.BGPPeers) && kube.Same(o.BGPAdvertisements, objs.BGPAdvertisements)
}

// any reports whether there is any object about announcements of load balancers.
func (r *rules) any() bool {
	return len(r.objs.L2Advertisements)+len(r.objs.BGPAdvertisements)+len(r.objs.BGPPeers) > 0
}

// silent reports whether no load balancer is announced, whatever there is.
func (r *rules) silent() bool { return len(r.links)+len(r.routes) == 0 }

// down reports whether Kubernetes takes a node for dead.
func down(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue
	})
}

// ad is an advertisement, read.
type ad struct {
	ref      kube.Ref
	pools    []string // nil: all
	services labels.Selector
	on       labels.Selector
	// interfaces are those of ARP and NDP on this node.
	interfaces []string
	// spec and attributes are those of BGP.
	spec       *v1alpha1.BGPAdvertisementSpec
	attributes attributes
}

// read returns what an advertisement says, and nil when it cannot be understood.
func (r *rules) read(obj kube.Object, a *v1alpha1.Announced) *ad {
	ref := kube.RefOf(obj)
	out := &ad{ref: ref, pools: a.Pools}
	for _, name := range a.Pools {
		if !slices.ContainsFunc(r.objs.AddressPools, func(p *v1alpha1.AddressPool) bool { return p.Name == name }) {
			r.say.Warnf(ref, "spec.pools", "there is no AddressPool %q: make it, or remove the name", name)
		}
	}
	var ok, also bool
	out.services, ok = r.selector(ref, "spec.serviceSelector", a.ServiceSelector)
	out.on, also = r.selector(ref, "spec.nodeSelector", a.NodeSelector)
	if !ok || !also {
		return nil
	}
	return out
}

// selector returns a selector that selects everything for nil.
func (r *rules) selector(ref kube.Ref, field string, s *metav1.LabelSelector) (labels.Selector, bool) {
	if s == nil {
		return labels.Everything(), true
	}
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		r.say.Errorf(ref, field, "it cannot be understood, so the object is not used: %v", err)
		return nil, false
	}
	return sel, true
}

// covers reports whether an advertisement is for an address.
func (a *ad) covers(at *address) bool {
	return (len(a.pools) == 0 || slices.Contains(a.pools, at.pool)) &&
		slices.ContainsFunc(at.services, func(m member) bool { return a.services.Matches(m.labels) })
}
