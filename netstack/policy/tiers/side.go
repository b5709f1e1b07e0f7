package tiers

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
)

// Subject is a pod as policies are for it.
type Subject struct {
	Namespace string
	Labels    law.Labels
	Ports     []law.NamedPort
}

// Side is what the policies of a cluster say of a pod in one direction.
type Side struct {
	parts  [count]part
	egress bool
	server []law.NamedPort // the pod's, for ingress
	vague  bool            // a policy may be for the pod, or not
}

// part is what one tier says.
type part struct {
	code    *code // nil: no policy of the tier is for the pod
	reading *law.Reading
	rules   law.Set // those that are for the pod
}

// Selects reports whether a policy is for a pod in one direction. That may not be certain where the labels of the pod's
// namespace are not known.
func (t *Tiers) Selects(policy *Policy, p *Subject, egress bool) (selects, certain bool) {
	if len(policy.rules(egress)) == 0 || !policy.Pods.Matches(p.Labels) {
		return false, true
	}
	labels, known := t.world.Spaces[p.Namespace]
	if !known {
		labels = law.Labels{{Key: law.NameLabel, Value: p.Namespace}}
	}
	return policy.Namespaces.MatchesNamespace(labels, known)
}

// Side returns what the policies say of a pod in one direction; nil for nothing.
func (t *Tiers) Side(p *Subject, egress bool) *Side {
	s := &Side{egress: egress}
	if !egress {
		s.server = p.Ports
	}
	some := false
	for i := range t.tiers {
		one, here := &t.tiers[i], &s.parts[i]
		for j, policy := range one.list {
			selects, certain := t.Selects(policy, p, egress)
			if !selects {
				continue
			}
			s.vague, some = s.vague || !certain, true
			if here.code == nil {
				here.code, here.reading = one.code(), one.reading
				here.rules = here.code.law.Set()
			}
			for n := here.code.of[j][which(egress)]; n.first < n.end; n.first++ {
				here.rules.Add(n.first)
			}
		}
	}
	if !some {
		return nil
	}
	return s
}

// Other is the other end of a flow.
type Other struct {
	Addr  packet.Addr
	Group int
	// Ports are those of the pod that have names; none for whoever is no pod.
	Ports []law.NamedPort
	// Vague is set when it may be any pod.
	Vague bool
}

// Ruling is what a tier says of a flow.
type Ruling struct {
	Action Action
	Rule   law.ID // 0: no rule is for the flow, and the Action is Pass
	// Unknown is set when nothing can be said yet.
	Unknown bool
}

// Judge asks one tier about a flow to a port. It allocates nothing.
func (s *Side) Judge(in Tier, who *Other, proto packet.Proto, port uint16) Ruling {
	if s.vague {
		return Ruling{Unknown: true}
	}
	p := &s.parts[in]
	if p.code == nil {
		return Ruling{}
	}
	q := law.Query{Proto: proto, Port: port, Addr: who.Addr, Server: s.server}
	if s.egress {
		q.Server = who.Ports
	}
	named := p.reading.Naming(who.Group)
	n := p.code.law.First(p.rules, named.Certain, &q)
	possible := n
	switch {
	case who.Vague:
		possible = p.code.law.FirstOfAny(p.rules, &q)
	case !named.Sure():
		possible = p.code.law.First(p.rules, named.Possible, &q)
	}
	switch {
	case possible != n:
		return Ruling{Unknown: true}
	case n < 0:
		return Ruling{}
	}
	return Ruling{Action: p.code.actions[n], Rule: p.code.known[n]}
}
