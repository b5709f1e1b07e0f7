package law

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// Rule says which flows it is for: those with certain other ends, to certain ports.
type Rule struct {
	// Everybody is set when the rule is for all other ends. Otherwise it is for Parties, and without any for nobody.
	Everybody bool
	Parties   []Party
	// AnyPort is set when the rule is for all protocols and ports. Otherwise it is for Ports, and without any for none.
	AnyPort bool
	Ports   []Ports
}

// Party is a group of other ends: those in Range without those in Except, or, without a Range, pods or nodes.
type Party struct {
	Range  netip.Prefix
	Except []netip.Prefix
	// Namespaces selects the namespaces in which Pods selects; nil is the rules' own namespace.
	Namespaces *Selector
	Pods       Selector
	// Nodes is set when Pods selects nodes instead, by their labels.
	Nodes bool
}

// Ports are ports of one protocol, TCP, UDP or SCTP: those from First to Last, both included, or the one with Name. It
// is a port of the pod that the flow goes to.
type Ports struct {
	Proto       packet.Proto
	Name        string
	First, Last uint16
}

// NamedPort is a port of a pod with its name.
type NamedPort struct {
	Name  string
	Proto packet.Proto
	Port  uint16
}

// Size is how large rules are, in what they cost: each rule has a place in each set of rules, and a set follows from
// each range and port.
type Size struct {
	Rules int
	// Selectors are the parties of rules that are pods or nodes, and the requirements of their selectors, where one
	// with several values counts as many.
	Selectors int
	// Ranges are those that rules name, and those that they except.
	Ranges int
	Ports  int
}

// Plus returns the size of both.
func (s Size) Plus(t Size) Size {
	return Size{s.Rules + t.Rules, s.Selectors + t.Selectors, s.Ranges + t.Ranges, s.Ports + t.Ports}
}

// Size returns the size of a rule.
func (r *Rule) Size() Size {
	s := Size{Rules: 1, Ports: len(r.Ports)}
	for i := range r.Parties {
		p := &r.Parties[i]
		if p.Range.IsValid() {
			s.Ranges += 1 + len(p.Except)
			continue
		}
		s.Selectors += 1 + p.Pods.size()
		if p.Namespaces != nil {
			s.Selectors += p.Namespaces.size()
		}
	}
	return s
}

func (s Selector) size() (n int) {
	for i := range s {
		n += max(1, len(s[i].Values))
	}
	return n
}
