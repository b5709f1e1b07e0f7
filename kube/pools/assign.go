package pools

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pools/block"
	"tapestry.dev/tapestry/kube/translate"
)

// Class is the spec.loadBalancerClass of the Services that get addresses here.
const Class = "tapestry.dev/load-balancer"

// Assignment is what a Service has.
type Assignment struct {
	Service *corev1.Service
	// Addrs are its addresses, sorted. On Nodes, they are those of nodes.
	Addrs   []netip.Addr
	OnNodes bool
	// Shared is set when other Services may be at the addresses, too, on other ports.
	Shared bool
	// Pool is the name of the pool that has the addresses, "" for addresses that no pool has any longer.
	Pool string
	// Reason says in one word why Addrs lacks an address, and Message in a sentence. They are "" when it lacks none.
	Reason, Message string
	// Apart says in a sentence that another Service is at one of Addrs which no longer shares it. It is "" for none.
	Apart string
}

// Usage says how much of a pool is in use.
type Usage struct {
	Assigned, Free int64
	// Faults say which parts of the pool cannot be assigned.
	Faults []string
}

// Plan is who has which addresses.
type Plan struct {
	// Services are those that are served here, sorted by namespace and name.
	Services []Assignment
	// Pools has the usage of each AddressPool by its name.
	Pools    map[string]Usage
	Problems []kube.Problem
}

// Condition is the condition of a Service that says what it has. OnNodes and Assigned are its reasons while it is True:
// the addresses are those of a pool of nodes, or of a pool with addresses of its own.
const (
	Condition = "tapestry.dev/LoadBalancer"
	OnNodes   = "OnNodes"
	Assigned  = "Assigned"
)

// The reasons why a Service lacks an address.
const (
	// BadRequest: what the Service asks for cannot be understood.
	BadRequest = "BadRequest"
	// NoPool: there is no pool that selects the Service and has what it asks for.
	NoPool = "NoPool"
	// Exhausted: every pool for the Service is used up.
	Exhausted = "PoolExhausted"
	// Taken: another Service has the address.
	Taken = "AddressTaken"
)

// Assign decides who has which addresses. orNone is set when Services without a class are served, too.
func Assign(objs *kube.Objects, orNone bool) Plan {
	w := newWork(objs)
	w.readPools(objs)
	var all []*wish
	for _, svc := range objs.Services {
		if Ours(svc, orNone) && svc.DeletionTimestamp == nil && !w.foreign(svc) {
			all = append(all, w.wish(svc))
		}
	}
	slices.SortFunc(all, func(a, b *wish) int {
		return cmp.Or(a.svc.CreationTimestamp.Compare(b.svc.CreationTimestamp.Time), cmp.Compare(a.svc.Namespace, b.svc.Namespace), cmp.Compare(a.svc.Name, b.svc.Name))
	})
	// Whoever has other ports than it had may want one that another Service has: it comes after those who stay.
	for _, moved := range []bool{false, true} {
		for _, s := range all {
			if s.moved() == moved {
				w.keep(s)
			}
		}
	}
	for _, s := range all {
		w.complete(s)
	}
	return w.plan(all)
}

// foreign reports whether a Service without a class is somebody else's so far: it has addresses, or would get none
// here, and nothing of it is from here. A cloud's controller, which serves Services without a class, too, keeps what it
// has.
func (w *work) foreign(svc *corev1.Service) bool {
	if svc.Spec.LoadBalancerClass != nil || meta.FindStatusCondition(svc.Status.Conditions, Condition) != nil {
		return false
	}
	if len(svc.Status.LoadBalancer.Ingress) == 0 {
		return len(w.pools) == 0
	}
	return !slices.ContainsFunc(svc.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool {
		a, err := netip.ParseAddr(in.IP)
		return err == nil && w.poolOf(a.Unmap()) != nil
	})
}

// work is one call of Assign.
type work struct {
	say        *kube.Report
	pools      []*pool
	ranges     []owned // of pods and Services
	nodeAddrs  []netip.Addr
	egress     []netip.Addr // from which pods leave
	isNode     map[netip.Addr]bool
	isTaken    map[netip.Addr]bool // by a node, or as an egress address: assigned to no Service
	namespaces map[string]labels.Set
	at         map[netip.Addr]*holders
	shared     map[class][]netip.Addr // the addresses that Services of a class have, sorted
}

// owned is a range whose addresses are for something else.
type owned struct {
	netip.Prefix
	owner string
}

// holders are the Services that have an address, all of one class but at nodes' addresses and while they are apart.
type holders struct {
	list  []*wish
	ports map[port]*wish
	// apart is set while some of them, who were given the address together, would not share it any longer.
	apart bool
}

// wish is a Service, and what it has got so far.
type wish struct {
	request
	of         class
	understood bool
	// addrs are those that it has and asks for. old are those that it has and asks for no longer: it keeps them until
	// it has others.
	addrs, old []netip.Addr
	// onNodes is set for a Service that has addresses of a pool of nodes, also when these nodes are gone. shared is set
	// for one that was given addresses at which others may be.
	onNodes, shared bool
	pool            *pool
	reason          string
	message         string
}

func newWork(objs *kube.Objects) *work {
	w := &work{
		say: &kube.Report{}, isNode: map[netip.Addr]bool{}, isTaken: map[netip.Addr]bool{}, namespaces: map[string]labels.Set{},
		at: map[netip.Addr]*holders{}, shared: map[class][]netip.Addr{},
	}
	result := translate.Translate(kube.Objects{Nodes: objs.Nodes, ServiceCIDRs: objs.ServiceCIDRs, EgressAddresses: objs.EgressAddresses}, translate.Options{})
	cluster := result.Services
	for _, p := range cluster.ClusterCIDRs {
		w.ranges = append(w.ranges, owned{p, "pods"})
	}
	for _, p := range cluster.ServiceCIDRs {
		w.ranges = append(w.ranges, owned{p, "Services"})
	}
	w.nodeAddrs = cluster.NodeAddrs
	for _, a := range w.nodeAddrs {
		w.isNode[a], w.isTaken[a] = true, true
	}
	w.egress = result.Exits.Addresses
	for _, a := range w.egress {
		w.isTaken[a] = true
	}
	for _, ns := range objs.Namespaces {
		set := labels.Set{corev1.LabelMetadataName: ns.Name}
		for k, v := range ns.Labels {
			set[k] = v
		}
		w.namespaces[ns.Name] = set
	}
	return w
}

func (w *work) wish(svc *corev1.Service) *wish {
	var say kube.Report
	r, ok := read(svc, &say)
	s := &wish{request: r, of: r.class(), understood: ok}
	if !ok {
		s.reason, s.message = BadRequest, say.Problems[0].Field+": "+say.Problems[0].Message
		w.say.Problems = append(w.say.Problems, say.Problems...)
	}
	return s
}

// keep lets a Service keep what its status says, but for families that it asks for no longer.
func (w *work) keep(s *wish) {
	var has []netip.Addr
	seen := map[netip.Addr]bool{}
	c := meta.FindStatusCondition(s.svc.Status.Conditions, Condition)
	s.onNodes, s.shared = c != nil && c.Reason == OnNodes, len(portsIn(&s.svc.Status.LoadBalancer)) > 0
	for _, in := range s.svc.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if a = a.Unmap(); err != nil || seen[a] { // others may write a status, too
			continue
		}
		has, seen[a] = append(has, a), true
		if p := w.poolOf(a); p != nil && p.nodes {
			s.onNodes, s.pool = true, cmp.Or(s.pool, p)
		}
	}
	if s.onNodes && len(s.request.addrs) == 0 && kube.LocalBalancer(s.svc) {
		// Its status names those alone that have endpoints, and the others wait for some. Those that it names may be
		// none of the pool's any more.
		if s.pool = cmp.Or(s.pool, w.nodesFor(s)); s.pool != nil {
			has = append(has, slices.DeleteFunc(slices.Clone(s.pool.addrs), func(a netip.Addr) bool { return seen[a] })...)
		}
	}
	for _, a := range has {
		if !slices.Contains(s.families, a.Is4()) || !s.onNodes && s.has(a.Is4()) {
			continue
		}
		if other := w.stay(s, a); other != nil {
			s.lacks(Taken, "%s, which it had, belongs to Service %s/%s already", a, other.svc.Namespace, other.svc.Name)
			continue
		}
		p := w.poolOf(a)
		if s.wants(a, p) && (!s.onNodes || len(s.request.addrs) > 0) {
			s.addrs, s.pool = append(s.addrs, a), cmp.Or(s.pool, p)
		} else { // of several nodes': see giveNodes
			s.old = append(s.old, a)
		}
	}
}

// nodesFor returns the pool of nodes that a Service may have addresses of, or nil.
func (w *work) nodesFor(s *wish) *pool {
	list := w.candidates(s)
	if i := slices.IndexFunc(list, func(p *pool) bool { return p.nodes }); i >= 0 {
		return list[i]
	}
	return nil
}

// has reports whether a Service has kept an address of a family.
func (s *wish) has(is4 bool) bool {
	same := func(a netip.Addr) bool { return a.Is4() == is4 }
	return slices.ContainsFunc(s.addrs, same) || slices.ContainsFunc(s.old, same)
}

// moved reports whether a Service has a port that its status does not name. A status that names none says nothing.
func (s *wish) moved() bool {
	had := portsIn(&s.svc.Status.LoadBalancer)
	return len(had) > 0 && slices.ContainsFunc(portsOf(s.svc), func(p port) bool { return !slices.Contains(had, p) })
}

// wants reports whether a Service that has an address of a pool (nil for none) asks for it. What cannot be understood
// takes nothing away.
func (s *wish) wants(a netip.Addr, p *pool) bool {
	switch {
	case !s.understood:
		return true
	case slices.ContainsFunc(s.request.addrs, func(b netip.Addr) bool { return s.onNodes || a.Is4() == b.Is4() }):
		return slices.Contains(s.request.addrs, a)
	}
	return s.request.pool == "" || p == nil || p.obj.Name == s.request.pool
}

func (w *work) poolOf(a netip.Addr) *pool {
	for _, p := range w.pools {
		if p.holds(a) && (p.nodes || !w.isTaken[a]) {
			return p
		}
	}
	return nil
}

// claim gives a Service an address, or returns the Service that has it and does not share it.
func (w *work) claim(s *wish, a netip.Addr) (other *wish) {
	h := w.holdersOf(a)
	if other := h.without(s); other != nil && !w.isNode[a] { // nodes' are shared with everybody
		return other
	}
	return w.enter(s, a, h)
}

// stay gives a Service an address that it had, or returns the Service that has it. Those who were given an address
// together stay there when they say different things of it by now, since nobody can know who is to go, and whoever went
// would lose his clients.
func (w *work) stay(s *wish, a netip.Addr) (other *wish) {
	h := w.holdersOf(a)
	if other := h.without(s); other != nil && !w.isNode[a] && !h.knew(s) {
		return other
	}
	return w.enter(s, a, h)
}

func (w *work) holdersOf(a netip.Addr) *holders {
	h := w.at[a]
	if h == nil {
		h = &holders{ports: map[port]*wish{}}
		w.at[a] = h
	}
	return h
}

// without returns a holder who does not share the address with a Service, or nil.
func (h *holders) without(s *wish) *wish {
	list := h.list
	if !h.apart {
		list = list[:min(len(list), 2)] // one of them is another Service, if any is
	}
	for _, o := range list {
		if o != s && !s.of.shares(o.of) {
			return o
		}
	}
	return nil
}

// knew reports whether a Service was given the address together with all who have it.
func (h *holders) knew(s *wish) bool {
	return s.shared && !slices.ContainsFunc(h.list, func(o *wish) bool { return !o.shared || o.svc.Namespace != s.svc.Namespace })
}

// enter puts a Service at an address, or returns the Service that has one of its ports there.
func (w *work) enter(s *wish, a netip.Addr, h *holders) (other *wish) {
	ports := portsOf(s.svc)
	for _, p := range ports {
		if h.ports[p] != nil && h.ports[p] != s {
			return h.ports[p]
		}
	}
	h.apart = h.apart || !w.isNode[a] && h.without(s) != nil
	h.list = append(h.list, s)
	if list := w.shared[s.of]; s.of != (class{}) {
		if i, there := slices.BinarySearchFunc(list, a, netip.Addr.Compare); !there {
			w.shared[s.of] = slices.Insert(list, i, a)
		}
	}
	for _, p := range ports {
		h.ports[p] = s
	}
	return nil
}

// leave takes addresses from a Service.
func (w *work) leave(s *wish, addrs []netip.Addr) {
	for _, a := range addrs {
		h := w.at[a]
		h.list = slices.DeleteFunc(h.list, func(o *wish) bool { return o == s })
		for _, p := range portsOf(s.svc) {
			if h.ports[p] == s {
				delete(h.ports, p)
			}
		}
		h.apart = h.apart && slices.ContainsFunc(h.list, func(o *wish) bool { return h.without(o) != nil })
		if !slices.ContainsFunc(h.list, func(o *wish) bool { return o.of == s.of }) {
			w.shared[s.of] = slices.DeleteFunc(w.shared[s.of], func(b netip.Addr) bool { return b == a })
		}
		if len(h.list) == 0 {
			delete(w.at, a)
		}
	}
}

// gets gives a Service addresses that it has claimed, in place of what it asks for no longer.
func (w *work) gets(s *wish, got []netip.Addr, p *pool) {
	w.leave(s, s.old)
	s.addrs, s.old, s.pool = append(s.addrs, got...), nil, cmp.Or(s.pool, p)
	if s.understood {
		s.reason, s.message = "", ""
	}
}

// isOnNodes reports whether what a Service has got is of a pool of nodes. Where its addresses are in no pool any
// longer, it is what it was.
func (s *wish) isOnNodes() bool {
	if s.pool == nil {
		return s.onNodes
	}
	return s.pool.nodes
}

func (s *wish) lacks(reason, format string, args ...any) {
	s.reason, s.message = reason, fmt.Sprintf(format, args...)
}

// plan returns what was decided.
func (w *work) plan(all []*wish) Plan {
	out := Plan{Pools: map[string]Usage{}}
	for _, s := range all {
		a := Assignment{Service: s.svc, Shared: s.key != "" || s.onNodes || s.pool != nil && s.pool.nodes, Addrs: append(s.addrs, s.old...), Reason: s.reason, Message: s.message}
		slices.SortFunc(a.Addrs, netip.Addr.Compare)
		if len(a.Addrs) > 0 {
			a.OnNodes = s.isOnNodes()
			if s.pool != nil {
				a.Pool = s.pool.obj.Name
			}
		}
		for _, addr := range a.Addrs {
			if w.poolOf(addr) == nil {
				w.say.Warnf(kube.RefOf(s.svc), "status.loadBalancer", "%s is in no AddressPool any longer: the Service keeps it until it is deleted or asks for another", addr)
			}
			if h := w.at[addr]; h != nil && h.apart && a.Apart == "" {
				a.Shared, a.Apart = true, apart(addr, s, h)
				w.say.Warnf(kube.RefOf(s.svc), "status.loadBalancer", "%s", a.Apart)
			}
		}
		out.Services = append(out.Services, a)
	}
	slices.SortFunc(out.Services, func(a, b Assignment) int {
		return cmp.Or(cmp.Compare(a.Service.Namespace, b.Service.Namespace), cmp.Compare(a.Service.Name, b.Service.Name))
	})
	for _, p := range w.pools {
		out.Pools[p.obj.Name] = w.usage(p)
	}
	out.Problems = w.say.Problems
	return out
}

// apart says who is at an address with a Service and does not share it any longer, or that such others are there.
func apart(a netip.Addr, s *wish, h *holders) string {
	who := "Services"
	if o := h.without(s); o != nil {
		who = "Service " + o.svc.Namespace + "/" + o.svc.Name
	}
	return fmt.Sprintf("%s is shared with %s, and they no longer say the same (%s, externalTrafficPolicy, and the selector where that is Local): "+
		"all stay there, and nobody else gets it, until they do or one of them asks for another address", a, who, kube.SharedAddressAnnotation)
}

func (w *work) usage(p *pool) Usage {
	u := Usage{Faults: p.faults}
	if p.nodes { // every Service with other ports finds room
		for _, a := range p.addrs {
			if w.at[a] != nil {
				u.Assigned++
			}
		}
		u.Free = int64(len(p.addrs))
		return u
	}
	for _, b := range p.blocks {
		u.Free = min(block.Most, u.Free+b.Size())
	}
	for a := range w.at {
		if p.holds(a) && !w.isTaken[a] {
			u.Assigned++
		}
	}
	if u.Free < block.Most {
		u.Free -= u.Assigned + w.never(p)
	}
	return u
}

// never counts the addresses of a pool that are never assigned.
func (w *work) never(p *pool) (n int64) {
	for _, b := range p.blocks {
		if p.obj.Spec.AvoidBuggyIPs {
			n += b.Buggies()
		}
		for a := range w.isTaken {
			if b.Contains(a) && !(p.obj.Spec.AvoidBuggyIPs && block.Buggy(a)) {
				n++
			}
		}
	}
	return n
}
