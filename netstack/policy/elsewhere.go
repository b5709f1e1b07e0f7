package policy

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/tiers"
)

// judged is what policies say of a pod, for ingress and for egress.
type judged struct {
	realm *realm
	tiers *tiers.Tiers
	sides [2]standing
}

// judgeElsewhere judges the ingress of a pod of another node. Nobody judges the flow after that. So towards an address
// of the cluster that no pod has yet, or that two claim, nothing may be where any policy is about ingress: who knows
// whether it selects the pod.
func (t *Table) judgeElsewhere(f *Flow) Ruling {
	to := t.at(&f.Dst)
	switch {
	case f.From.Kind == OwnAgent, t.nodes.have(&f.Dst):
		return Ruling{}
	case to == nil && t.isStranger(&f.Toward, &f.Dst) && t.about(false):
		return Ruling{Verdict: Unknown}
	case to == nil:
		return Ruling{}
	}
	from := t.who(&f.From, &f.Src, t.nodes.all)
	return t.judgeFor(to, &from, f, false)
}

// judgeSteered judges what the node of a flow's sender has judged for another destination: the egress of a pod there.
// Of a connection of its agent nobody here knows the client, so it may only go to a pod that permits everybody.
func (t *Table) judgeSteered(f *Flow) Ruling {
	from := t.at(&f.Src)
	switch {
	case t.nodes.agents[f.Src]:
		return t.judgeIsolation(f)
	case from == nil && t.isStranger(&f.From, &f.Src) && t.about(true):
		return Ruling{Verdict: Unknown}
	case from == nil:
		return Ruling{}
	}
	to := t.who(&f.Toward, &f.Dst, t.nodes.taps)
	return t.judgeFor(from, &to, f, true)
}

// judgeIsolation permits a flow only to a pod that no policy selects for ingress.
func (t *Table) judgeIsolation(f *Flow) Ruling {
	switch {
	case f.Toward.Kind == OwnPod:
		s, unknown := t.subject(&f.Toward)
		if unknown {
			return Ruling{Verdict: Unknown}
		}
		if s != nil {
			return s.ingress.refuse()
		}
	case f.Toward.byAddress():
		if to := t.at(&f.Dst); to != nil && !t.nodes.have(&f.Dst) {
			return t.judgeFor(to, nil, f, false)
		}
		return t.judgeElsewhere(f)
	}
	return Ruling{}
}

// isStranger reports whether an address of the cluster is neither a known pod's nor a node's.
func (t *Table) isStranger(e *End, a *packet.Addr) bool {
	return e.Kind == InCluster && !t.nodes.have(a)
}

// judgeFor judges one direction of a flow for a pod of another node. who is at the other end, nil for nobody that a
// rule names.
func (t *Table) judgeFor(p *person, who *other, f *Flow, egress bool) Ruling {
	r := t.policies.of[p.pod.Namespace]
	if r == nil && t.tiers == nil {
		return Ruling{}
	}
	if p.pod.Vague {
		return Ruling{Verdict: Unknown}
	}
	j := p.judged.Load()
	if j == nil || j.realm != r || j.tiers != t.tiers {
		j = &judged{r, t.tiers, [2]standing{t.standingOf(p.pod, r, false), t.standingOf(p.pod, r, true)}}
		p.judged.Store(j)
	}
	switch s := &j.sides[which(egress)]; {
	case s.free():
		return Ruling{}
	case who == nil:
		return s.refuse()
	default:
		return t.judge(s, who, f)
	}
}
