package policy

// Size is how large policies are, in what they cost: each rule has a place in each set of rules, and a set follows from
// each range and port.
type Size struct {
	Rules int
	// Selectors are the parties of rules that are pods, and the requirements of their selectors, where one with several
	// values counts as many.
	Selectors int
	// Ranges are those that rules name, and those that they except.
	Ranges int
	Ports  int
}

// Most is how large the policies of one namespace together may be. As large ones are compiled to some tens of MB, where
// a node has pods of the namespace. A Compiler takes larger ones.
var Most = Size{Rules: 5000, Selectors: 10_000, Ranges: 50_000, Ports: 10_000}

// Size returns the size of the rules that are in force.
func (p *Policy) Size() (s Size) {
	for _, egress := range directions {
		rules := p.rules(egress)
		if !rules.Isolates {
			continue
		}
		s.Rules += len(rules.List)
		s.Ranges += rules.ranges()
		for i := range rules.List {
			r := &rules.List[i]
			s.Ports += len(r.Ports)
			for j := range r.Parties {
				if q := &r.Parties[j]; !q.Range.IsValid() {
					s.Selectors += 1 + q.Pods.size()
					if q.Namespaces != nil {
						s.Selectors += q.Namespaces.size()
					}
				}
			}
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

// Plus returns the size of both.
func (s Size) Plus(t Size) Size {
	return Size{s.Rules + t.Rules, s.Selectors + t.Selectors, s.Ranges + t.Ranges, s.Ports + t.Ports}
}
