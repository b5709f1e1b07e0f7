package pools

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pools/block"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// pool is an AddressPool, read.
type pool struct {
	obj    *v1alpha1.AddressPool
	blocks []block.Block
	// nodes is set for a pool of nodes. members are the addresses of all that it selects then, and addrs, sorted, those
	// of the nodes that can serve.
	nodes   bool
	members map[netip.Addr]bool
	addrs   []netip.Addr

	namespaces, services labels.Selector
	faults               []string // why parts of it cannot be assigned
	// search is where the next free address of each family is looked for.
	search map[bool]cursor
	full   map[bool]bool
}

// mark is how far the search for free addresses of a pool has come.
type mark struct {
	search [2]cursor
	full   [2]bool
}

func (p *pool) mark() mark {
	return mark{[2]cursor{p.search[false], p.search[true]}, [2]bool{p.full[false], p.full[true]}}
}

// reset goes back to a mark, since what was found after it was not used.
func (p *pool) reset(m mark) {
	p.search[false], p.search[true], p.full[false], p.full[true] = m.search[0], m.search[1], m.full[0], m.full[1]
}

// cursor is a place in a pool's blocks.
type cursor struct {
	block int
	next  netip.Addr
}

func (p *pool) ref() kube.Ref { return kube.RefOf(p.obj) }

// auto reports whether the pool is for Services that ask for none.
func (p *pool) auto() bool { return p.obj.Spec.AutoAssign == nil || *p.obj.Spec.AutoAssign }

// holds reports whether an address is one of the pool's.
func (p *pool) holds(a netip.Addr) bool {
	if p.nodes {
		return p.members[a]
	}
	return slices.ContainsFunc(p.blocks, func(b block.Block) bool { return b.Contains(a) }) && !(p.obj.Spec.AvoidBuggyIPs && block.Buggy(a))
}

// selects reports whether a Service may have addresses of the pool.
func (p *pool) selects(svc *corev1.Service, namespaces map[string]labels.Set) bool {
	ns, known := namespaces[svc.Namespace]
	if !known {
		ns = labels.Set{corev1.LabelMetadataName: svc.Namespace}
	}
	return p.namespaces.Matches(ns) && p.services.Matches(labels.Set(svc.Labels))
}

// compare orders pools as Services are given addresses of them.
func (p *pool) compare(q *pool) int {
	return cmp.Or(cmp.Compare(p.obj.Spec.Priority, q.obj.Spec.Priority), cmp.Compare(p.obj.Name, q.obj.Name))
}

// readPools reads the pools. Of two that have an address both, the older keeps it.
func (w *work) readPools(objs *kube.Objects) {
	for _, obj := range slices.SortedFunc(slices.Values(objs.AddressPools), block.Older) {
		p := &pool{obj: obj, search: map[bool]cursor{}, full: map[bool]bool{}, nodes: obj.Spec.Nodes != nil}
		p.namespaces = p.selector(obj.Spec.NamespaceSelector, "spec.namespaceSelector", w.say)
		p.services = p.selector(obj.Spec.ServiceSelector, "spec.serviceSelector", w.say)
		switch {
		case p.nodes && len(obj.Spec.Addresses) > 0:
			p.fault(w.say, "spec", "it has addresses and nodes: keep one of the two")
			p.nodes = false
		case p.nodes:
			w.readNodes(p, objs)
		default:
			w.readBlocks(p)
		}
		w.pools = append(w.pools, p)
	}
	slices.SortFunc(w.pools, (*pool).compare)
}

// fault reports what of a pool cannot be assigned.
func (p *pool) fault(say *kube.Report, field, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	p.faults = append(p.faults, field+": "+text)
	say.Errorf(p.ref(), field, "%s", text)
}

// selector returns a selector that selects everything for nil, and nothing when it cannot be understood.
func (p *pool) selector(s *metav1.LabelSelector, field string, say *kube.Report) labels.Selector {
	if s == nil {
		return labels.Everything()
	}
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		p.fault(say, field, "it cannot be understood, so the pool is for nobody: %v", err)
		return labels.Nothing()
	}
	return sel
}

func (w *work) readBlocks(p *pool) {
	for i, text := range p.obj.Spec.Addresses {
		field := "spec.addresses[" + strconv.Itoa(i) + "]"
		b, err := block.Parse(text)
		if err != nil {
			p.fault(w.say, field, "%v", err)
			continue
		}
		if r, found := w.reserved(b); found {
			p.fault(w.say, field, "%s overlaps %s, which are for %s: take addresses that nobody else has", text, r.Prefix, r.owner)
			continue
		}
		if q := w.poolOver(p, b); q != nil {
			p.fault(w.say, field, "%s overlaps AddressPool %q: remove it from one of the two", text, q.obj.Name)
			continue
		}
		p.blocks = append(p.blocks, b)
		if inside := slices.DeleteFunc(slices.Clone(w.nodeAddrs), func(a netip.Addr) bool { return !b.Contains(a) }); len(inside) > 0 {
			p.fault(w.say, field, "%s in %s is the address of a node, as are %d others, and is not assigned: leave them out", inside[0], text, len(inside)-1)
		}
		if i := slices.IndexFunc(w.egress, b.Contains); i >= 0 {
			p.fault(w.say, field, "%s in %s is an address from which pods leave (EgressAddress), and is not assigned: leave it out", w.egress[i], text)
		}
	}
}

// reserved returns the range of pods or Services in which a block lies.
func (w *work) reserved(b block.Block) (owned, bool) {
	for _, r := range w.ranges {
		if b.Overlaps(block.Block{First: r.Masked().Addr(), Last: block.LastOf(r.Masked())}) {
			return r, true
		}
	}
	return owned{}, false
}

// poolOver returns the pool that has a part of a block already.
func (w *work) poolOver(p *pool, b block.Block) *pool {
	for _, q := range append(slices.Clip(w.pools), p) {
		if slices.ContainsFunc(q.blocks, b.Overlaps) {
			return q
		}
	}
	return nil
}

// readNodes collects the addresses of a pool of nodes: those that run an agent, are not known to be down, and are not
// kept from load balancers (KEP-1143).
func (w *work) readNodes(p *pool, objs *kube.Objects) {
	sel := p.selector(p.obj.Spec.Nodes, "spec.nodes", w.say)
	p.members = map[netip.Addr]bool{}
	for _, n := range objs.Nodes {
		_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
		if n.Annotations[kube.StockAnnotation] == "true" || n.Labels[kube.ExternalLabel] == "true" || !sel.Matches(labels.Set(n.Labels)) {
			continue
		}
		for _, at := range n.Status.Addresses {
			if a, err := netip.ParseAddr(at.Address); err == nil && at.Type == corev1.NodeInternalIP && addressing.Special(a) == "" {
				p.members[a.Unmap()] = true
				if !excluded && !down(n) {
					p.addrs = append(p.addrs, a.Unmap())
				}
			}
		}
	}
	slices.SortFunc(p.addrs, netip.Addr.Compare)
	p.addrs = slices.Compact(p.addrs)
}

func down(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue
	})
}

// free returns the next address of a family that nobody has. It never returns an address twice.
func (w *work) free(p *pool, is4 bool) (netip.Addr, bool) {
	if p.nodes || p.full[is4] {
		return netip.Addr{}, false
	}
	c := p.search[is4]
	for ; c.block < len(p.blocks); c = (cursor{block: c.block + 1}) {
		b := p.blocks[c.block]
		if b.First.Is4() != is4 {
			continue
		}
		if !c.next.IsValid() {
			c.next = b.First
		}
		for a := c.next; b.Contains(a); a = a.Next() {
			c.next = a.Next()
			if w.at[a] == nil && !w.isTaken[a] && !(p.obj.Spec.AvoidBuggyIPs && block.Buggy(a)) {
				p.search[is4] = c
				return a, true
			}
		}
	}
	p.full[is4] = true
	return netip.Addr{}, false
}
