package policy

import (
	"hash/maphash"
	"net/netip"
	"strings"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
	"tapestry.dev/tapestry/roll"
)

// Table judges flows. It never changes, and its methods are safe for concurrent use.
type Table struct {
	seed     maphash.Seed
	known    roll.Map[packet.Addr, *person]
	own      map[string]*subject
	policies *policies
	tiers    *tiers.Tiers // nil: there are no policies of the cluster
	nodes    *nodes
}

// person is a pod that has an address.
type person struct {
	pod   *Pod
	group int
	also  *person // another pod that claims the address
	// judged is what policies permit it, for flows that are judged here in place of its node. It is nil until then.
	judged atomic.Pointer[judged]
}

// subject is a pod of this node.
type subject struct {
	person
	realm           *realm // of its namespace, nil for none
	tiers           *tiers.Tiers
	egress, ingress standing
}

// nodes are the addresses of nodes.
type nodes struct {
	// taps has the addresses of host TAPs, and all those of nodes besides: each leads to that as which ranges see it.
	taps, all map[packet.Addr]packet.Addr
	agents    map[packet.Addr]bool
	pods      map[string][]netip.Prefix // by node, the ranges of its pods
	groups    map[packet.Addr]int       // of addresses of nodes, while a rule names nodes
}

// believe reports whether a pod may have an address.
func (n *nodes) believe(p *Pod, a *packet.Addr) bool {
	if p.Node == "" {
		return true
	}
	addr := a.Netip()
	for _, r := range n.pods[p.Node] {
		if r.Contains(addr) {
			return !n.agents[*a]
		}
	}
	return false
}

// have reports whether an address is a node's own, its host TAP's or its agent's.
func (n *nodes) have(a *packet.Addr) bool {
	_, found := n.all[*a]
	return found || n.agents[*a]
}

// policies are the policies of a Table.
type policies struct {
	list []*Policy
	of   map[string]*realm // by namespace
	// about says whether any pod may be isolated, for ingress and for egress.
	about [2]bool
	// spaces are the labels of the namespaces of the Config, by name.
	spaces map[string]law.Labels
	// serials number the policies. One that goes on has the number that it had.
	serials map[*Policy]uint32
	next    uint32
}

func (p *policies) serialsOf(list []*Policy) []uint32 {
	serials := make([]uint32, len(list))
	for i, one := range list {
		serials[i] = p.serials[one]
	}
	return serials
}

// about reports whether any policy is about a direction.
func (t *Table) about(egress bool) bool {
	return t.policies.about[which(egress)] || t.tiers.About(egress)
}

// Judge says whether a flow may be. It allocates nothing and does not block, but when a pod of another node is judged
// for the first time: then what policies permit it is compiled. f is borrowed.
func (t *Table) Judge(f *Flow) Ruling {
	r := t.judgeEgress(f)
	if r.Verdict != Permit {
		return r
	}
	if in := t.JudgeIngress(f); in != (Ruling{}) {
		return in
	}
	return r
}

// judgeEgress is Judge for the egress of the pod that begins a flow, whatever the ingress of the other says.
func (t *Table) judgeEgress(f *Flow) Ruling {
	switch {
	case f.toItself():
	case f.From.Kind == OwnPod:
		s, unknown := t.subject(&f.From)
		if unknown {
			return Ruling{Verdict: Unknown}
		}
		if s != nil && !s.egress.free() {
			to := t.who(&f.Toward, &f.Dst, t.nodes.taps)
			return t.judge(&s.egress, &to, f)
		}
	case f.Steered && f.From.byAddress():
		return t.judgeSteered(f)
	}
	return Ruling{}
}

// IsNode reports whether an address is a node's own.
func (t *Table) IsNode(a packet.Addr) bool { return t.nodes.have(&a) }

// JudgeIngress is Judge for the ingress of the pod that a flow goes to, whatever the egress of its sender says.
func (t *Table) JudgeIngress(f *Flow) Ruling {
	switch {
	case f.toItself():
	case f.Toward.Kind == OwnPod:
		if f.From.Kind == OwnNode || f.From.Kind == OwnAgent || f.From.byAddress() && t.nodes.agents[f.Src] {
			return Ruling{}
		}
		s, unknown := t.subject(&f.Toward)
		if unknown {
			return Ruling{Verdict: Unknown}
		}
		if s != nil && !s.ingress.free() {
			from := t.who(&f.From, &f.Src, t.nodes.all)
			return t.judge(&s.ingress, &from, f)
		}
	case f.Both && f.Toward.byAddress():
		return t.judgeElsewhere(f)
	}
	return Ruling{}
}

// subject returns a pod of this node, nil for one that may do everything. unknown is set for one of which nothing is
// known where there are policies.
func (t *Table) subject(e *End) (s *subject, unknown bool) {
	if s = t.ownPod(e); s != nil && !s.pod.Vague {
		return s, false
	}
	namespace, _, _ := strings.Cut(e.Name, "/")
	return nil, t.policies.of[namespace] != nil || t.tiers != nil
}

// ownPod returns a pod of this node, nil if it is not known. What is known of another pod of that name is of no use: a
// pod may be attached before its node hears that it was made anew.
func (t *Table) ownPod(e *End) *subject {
	s := t.own[e.Name]
	if s != nil && e.UID != "" && s.pod.UID != "" && s.pod.UID != e.UID {
		return nil
	}
	return s
}

// who returns who is at an end. aliases are those of nodes: whichever address a node speaks from, it is its first one,
// but it is asked at the one that was meant.
func (t *Table) who(e *End, a *packet.Addr, aliases map[packet.Addr]packet.Addr) other {
	if e.Kind == OwnPod {
		if s := t.ownPod(e); s != nil {
			return other{*a, s.group, s.pod}
		}
		return other{addr: *a}
	}
	if alias, ok := aliases[*a]; ok {
		return other{addr: alias}
	}
	if p := t.at(a); p != nil {
		return other{*a, p.group, p.pod}
	}
	return other{addr: *a}
}

// at returns the pod that has an address, nil if none or several have.
func (t *Table) at(a *packet.Addr) (found *person) {
	p, _ := t.known.Get(maphash.Bytes(t.seed, a[:]), *a)
	for ; p != nil; p = p.also {
		switch {
		case !t.nodes.believe(p.pod, a):
		case found != nil:
			return nil
		default:
			found = p
		}
	}
	return found
}
