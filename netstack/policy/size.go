package policy

import "tapestry.dev/tapestry/netstack/policy/law"

// Most is how large the policies of one namespace together may be. As large ones are compiled to some tens of MB, where
// a node has pods of the namespace. A Compiler takes larger ones.
var Most = law.Size{Rules: 5000, Selectors: 10_000, Ranges: 50_000, Ports: 10_000}

// Size returns the size of the rules that are in force.
func (p *Policy) Size() (s law.Size) {
	for _, egress := range directions {
		rules := p.rules(egress)
		if !rules.Isolates {
			continue
		}
		for i := range rules.List {
			s = s.Plus(rules.List[i].Size())
		}
	}
	return s
}
