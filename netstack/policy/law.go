package policy

import (
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
)

// law is what the policies of one namespace are compiled to. All rules in force of both directions have numbers, in the
// order of policies, and what they say is turned around: it says, for each port, address and group of pods, which rules
// are for it. It never changes.
type law struct {
	// of says which rules each policy has, for ingress and for egress.
	of [][2]numbers
	// known are what the rules are known by outside.
	known     []uint64
	everybody set // rules for all other ends
	anyPort   set // rules for all protocols and ports
	ports     [len(protocols)]intervals
	// named are the rules for ports with names.
	named     map[portName]set
	addresses intervals
	parties   parties
	none      set // no rules
}

// numbers are those from first on that are smaller than end.
type numbers struct{ first, end int }

type portName struct {
	proto packet.Proto
	name  string
}

// protocols are those that have ports for policies, in the order of law.ports.
var protocols = [...]packet.Proto{packet.TCP, packet.UDP, packet.SCTP}

// numbered returns the place of a protocol in protocols, or -1.
func numbered(p packet.Proto) int {
	switch p {
	case packet.TCP:
		return 0
	case packet.UDP:
		return 1
	case packet.SCTP:
		return 2
	}
	return -1
}

// rules returns what a policy permits in one direction.
func (p *Policy) rules(egress bool) *Rules {
	if egress {
		return &p.Egress
	}
	return &p.Ingress
}

// lawOf compiles the policies of one namespace, which have these serial numbers.
func lawOf(list []*Policy, serials []uint32) *law {
	n, ranges := 0, 0
	for _, p := range list {
		for _, egress := range directions {
			if rules := p.rules(egress); rules.Isolates {
				n += len(rules.List)
				ranges += rules.ranges()
			}
		}
	}
	l := &law{
		of: make([][2]numbers, len(list)), known: make([]uint64, 0, n), everybody: newSet(n), anyPort: newSet(n),
		named: map[portName]set{}, none: newSet(n), parties: newParties(),
	}
	var ports [len(protocols)][]edge
	spans := make([]edge, 0, 2*ranges)
	for i, p := range list {
		for _, egress := range directions {
			rules, at := p.rules(egress), &l.of[i][which(egress)]
			at.first = len(l.known)
			for j := range rules.List {
				if rules.Isolates {
					l.addPorts(len(l.known), &rules.List[j], &ports)
					spans = l.addParties(len(l.known), &rules.List[j], spans)
					l.known = append(l.known, idOf(serials[i], egress, j))
				}
			}
			at.end = len(l.known)
		}
	}
	for i := range ports {
		l.ports[i] = cut(ports[i], n)
	}
	l.addresses = cut(spans, n)
	return l
}

var directions = [...]bool{true, false} // whether it is egress

// ranges returns how many ranges there are, exceptions among them.
func (r *Rules) ranges() (n int) {
	for i := range r.List {
		for j := range r.List[i].Parties {
			if p := &r.List[i].Parties[j]; p.Range.IsValid() {
				n += 1 + len(p.Except)
			}
		}
	}
	return n
}

func (l *law) addPorts(rule int, r *Rule, edges *[len(protocols)][]edge) {
	if r.AnyPort {
		l.anyPort.add(rule)
		for i := range edges {
			edges[i] = append(edges[i], edge{place{}, int32(rule), 1})
		}
		return
	}
	for i := range r.Ports {
		p := &r.Ports[i]
		at := numbered(p.Proto)
		switch {
		case at < 0:
		case p.Name != "":
			key := portName{p.Proto, p.Name}
			if l.named[key] == nil {
				l.named[key] = slices.Clone(l.none)
			}
			l.named[key].add(rule)
		case p.First <= p.Last:
			edges[at] = append(edges[at], edge{place{lo: uint64(p.First)}, int32(rule), 1}, edge{place{lo: uint64(p.Last) + 1}, int32(rule), -1})
		}
	}
}

// addParties adds the other ends of a rule, the ranges to spans.
func (l *law) addParties(rule int, r *Rule, spans []edge) []edge {
	if r.Everybody {
		l.everybody.add(rule)
		return spans
	}
	for i := range r.Parties {
		if p := &r.Parties[i]; p.Range.IsValid() {
			spans = addSpans(spans, rule, p)
		} else {
			l.parties.add(rule, p)
		}
	}
	return spans
}

func addSpans(edges []edge, rule int, p *Party) []edge {
	for _, s := range without(p.Range, p.Except) {
		edges = append(edges, edge{s.first, int32(rule), 1})
		if next, ok := s.last.after(); ok {
			edges = append(edges, edge{next, int32(rule), -1})
		}
	}
	return edges
}
