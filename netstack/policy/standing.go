package policy

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/tiers"
)

// standing is what all policies say of a pod in one direction: those of the cluster in their tiers, and between these
// the NetworkPolicies of its namespace.
type standing struct {
	cluster *tiers.Side // nil: no policy of the cluster is for the pod
	side    *side       // nil: no NetworkPolicy selects it
	egress  bool
}

// standingOf returns what the policies of t say of a pod. r is the realm of its namespace, nil for none.
func (t *Table) standingOf(p *Pod, r *realm, egress bool) standing {
	s := standing{egress: egress}
	if r != nil {
		s.side = r.side(p, egress)
	}
	if t.tiers != nil {
		s.cluster = t.tiers.Side(p.subject(), egress)
	}
	return s
}

// subject returns the pod as policies of the cluster are for it.
func (p *Pod) subject() *tiers.Subject {
	return &tiers.Subject{Namespace: p.Namespace, Labels: p.Labels, Ports: p.Ports}
}

// free reports whether the pod may do everything.
func (s *standing) free() bool { return s.cluster == nil && s.side == nil }

// judge judges the direction of s for a flow. who is at its other end.
func (t *Table) judge(s *standing, who *other, f *Flow) Ruling {
	if s.cluster == nil {
		return s.side.judge(who, f)
	}
	end, addr := &f.From, &f.Src
	if s.egress {
		end, addr = &f.Toward, &f.Dst
	}
	to := t.inCluster(who, end, addr)
	if r := s.cluster.Judge(tiers.Admin, &to, f.Proto, f.Port); r.Unknown || r.Action != tiers.Pass {
		return rulingOf(r)
	}
	if s.side != nil {
		return s.side.judge(who, f)
	}
	return rulingOf(s.cluster.Judge(tiers.Baseline, &to, f.Proto, f.Port))
}

func rulingOf(r tiers.Ruling) Ruling {
	switch {
	case r.Unknown:
		return Ruling{Verdict: Unknown}
	case r.Action == tiers.Deny:
		return Ruling{Drop, uint64(r.Rule)}
	case r.Action == tiers.Permit:
		return Ruling{Rule: uint64(r.Rule)}
	}
	return Ruling{}
}

// inCluster returns the other end of a flow as policies of the cluster see it, at an end with an address.
func (t *Table) inCluster(who *other, e *End, a *packet.Addr) tiers.Other {
	to := tiers.Other{Addr: who.addr, Group: who.group}
	switch {
	case who.pod != nil:
		to.Ports = who.pod.Ports
		to.Vague = who.pod.Vague
	case e.Kind == OwnPod || t.isStranger(e, a):
		to.Vague = true
	default:
		to.Group = t.nodes.groups[*a] // Nobody for whoever is no node
	}
	return to
}

// refuse returns the ruling for a flow of which nobody knows who is at the other end: only who may do everything may do
// that.
func (s *standing) refuse() Ruling {
	switch {
	case s.side != nil:
		return Ruling{Deny, s.side.isolates}
	case s.cluster != nil:
		return Ruling{Verdict: Unknown}
	}
	return Ruling{}
}
