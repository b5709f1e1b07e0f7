package law

import (
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
)

// Law is a list of rules with numbers, from 0 on. What they say is turned around: it says, for each port, address and
// group of pods, which rules are for it. It never changes.
type Law struct {
	everybody Set // rules for all other ends
	anyPort   Set // rules for all protocols and ports
	ports     [len(protocols)]intervals
	// named are the rules for ports with names, and anyNamed all of these for each protocol.
	named     map[portName]Set
	anyNamed  [len(protocols)]Set
	addresses intervals
	parties   parties
	pods      Set // rules that name pods
	none      Set // no rules
}

type portName struct {
	proto packet.Proto
	name  string
}

// protocols are those that have ports for rules, in the order of Law.ports.
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

// Of compiles rules. Their numbers are their indices.
func Of(rules []*Rule) *Law {
	n, ranges := len(rules), 0
	for _, r := range rules {
		ranges += r.Size().Ranges
	}
	l := &Law{everybody: newSet(n), anyPort: newSet(n), named: map[portName]Set{}, pods: newSet(n), none: newSet(n), parties: newParties()}
	for i := range l.anyNamed {
		l.anyNamed[i] = newSet(n)
	}
	var ports [len(protocols)][]edge
	spans := make([]edge, 0, 2*ranges)
	for i, r := range rules {
		l.addPorts(i, r, &ports)
		spans = l.addParties(i, r, spans)
	}
	for i := range ports {
		l.ports[i] = cut(ports[i], n)
	}
	l.addresses = cut(spans, n)
	return l
}

// Set returns an empty set of its rules.
func (l *Law) Set() Set { return slices.Clone(l.none) }

// None returns the set of no rules, which must not be changed.
func (l *Law) None() Set { return l.none }

func (l *Law) addPorts(rule int, r *Rule, edges *[len(protocols)][]edge) {
	if r.AnyPort {
		l.anyPort.Add(rule)
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
				l.named[key] = l.Set()
			}
			l.named[key].Add(rule)
			l.anyNamed[at].Add(rule)
		case p.First <= p.Last:
			edges[at] = append(edges[at], edge{place{lo: uint64(p.First)}, int32(rule), 1}, edge{place{lo: uint64(p.Last) + 1}, int32(rule), -1})
		}
	}
}

// addParties adds the other ends of a rule, the ranges to spans.
func (l *Law) addParties(rule int, r *Rule, spans []edge) []edge {
	if r.Everybody {
		l.everybody.Add(rule)
		return spans
	}
	for i := range r.Parties {
		if p := &r.Parties[i]; p.Range.IsValid() {
			spans = addSpans(spans, rule, p)
		} else {
			if l.parties.add(rule, p); !p.Nodes {
				l.pods.Add(rule)
			}
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

// Query is a flow as a Law is asked about it.
type Query struct {
	Proto packet.Proto
	Port  uint16
	Addr  packet.Addr // the other end's
	// Server has the ports with names of the pod that the flow goes to; none if it goes to no pod.
	Server []NamedPort
}

// First returns the number of the first rule of a set that is for a flow, or -1. naming are the rules that name the
// group of the other end: see Reading. It allocates nothing.
func (l *Law) First(of, naming Set, q *Query) int {
	by := [3]Set{l.everybody, naming, l.addresses.at(placeOf(&q.Addr))}
	at := numbered(q.Proto)
	if at < 0 {
		return first(of, l.anyPort, by)
	}
	n := first(of, l.ports[at].at(place{lo: uint64(q.Port)}), by)
	if len(l.named) == 0 {
		return n
	}
	for i := range q.Server {
		p := &q.Server[i]
		if p.Proto != q.Proto || p.Port != q.Port {
			continue
		}
		if rules := l.named[portName{p.Proto, p.Name}]; rules != nil {
			n = earlier(n, first(of, rules, by))
		}
	}
	return n
}

// FirstOfAny is First for another end that may be any pod, with any names of ports: the rule may be for the flow.
func (l *Law) FirstOfAny(of Set, q *Query) int {
	by := [3]Set{l.everybody, l.pods, l.addresses.at(placeOf(&q.Addr))}
	at := numbered(q.Proto)
	if at < 0 {
		return first(of, l.anyPort, by)
	}
	return earlier(first(of, l.ports[at].at(place{lo: uint64(q.Port)}), by), first(of, l.anyNamed[at], by))
}

// earlier returns the smaller number of two, of which -1 is none.
func earlier(n, m int) int {
	if n < 0 || m >= 0 && m < n {
		return m
	}
	return n
}
