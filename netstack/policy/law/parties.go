package law

// parties are the groups of pods and nodes that rules name.
type parties struct {
	list []named
	// byLabel has those that need a label with one of a few values, by each of these. rest has the others.
	byLabel map[Label][]int
	rest    []int
	// crosses is set when one of them looks at other namespaces.
	crosses bool
	// pods and spaces are what selectors of pods and of namespaces look at.
	pods, spaces sight
}

// named is a Party, which a rule names.
type named struct {
	rule int
	*Party
}

func newParties() parties { return parties{byLabel: map[Label][]int{}, pods: sight{}, spaces: sight{}} }

func (l *parties) add(rule int, p *Party) {
	n := len(l.list)
	l.list = append(l.list, named{rule, p})
	l.pods.learn(p.Pods)
	if p.Namespaces != nil {
		l.crosses = true
		l.spaces.learn(*p.Namespaces)
	}
	in := -1
	for i := range p.Pods {
		if r := &p.Pods[i]; r.Op == In && (in < 0 || len(r.Values) < len(p.Pods[in].Values)) {
			in = i
		}
	}
	if in < 0 {
		l.rest = append(l.rest, n)
		return
	}
	for _, v := range p.Pods[in].Values {
		at := Label{p.Pods[in].Key, v}
		l.byLabel[at] = append(l.byLabel[at], n)
	}
}

// space is the namespace of a group of pods, as the rules of one namespace see it.
type space struct {
	labels Labels
	own    bool // it is the rules' own namespace
	known  bool // labels are all of its labels, and not its name alone
	nodes  bool // it is none: the group is of nodes
}

// naming adds to a set the rules that name a group of pods, which is in a namespace: those that do so for certain, or
// those that possibly do.
func (l *parties) naming(rules Set, g *group, in space, certainly bool) {
	try := func(list []int) {
		for _, i := range list {
			if p := &l.list[i]; !rules.has(p.rule) && p.looksAt(in, certainly) && p.Pods.Matches(g.labels) {
				rules.Add(p.rule)
			}
		}
	}
	for _, one := range g.labels {
		try(l.byLabel[one])
	}
	try(l.rest)
}

// looksAt reports whether p selects in a namespace, for certain or possibly.
func (p *Party) looksAt(in space, certainly bool) bool {
	switch {
	case p.Nodes || in.nodes:
		return p.Nodes && in.nodes
	case p.Namespaces == nil:
		return in.own
	}
	selects, certain := p.Namespaces.MatchesNamespace(in.labels, in.known)
	return selects && (certain || !certainly)
}

// MatchesNamespace reports whether s selects a namespace with these labels. If not all of them are known, but its name,
// that may not be certain: s may select it, or not, by the others.
func (s Selector) MatchesNamespace(l Labels, known bool) (selects, certain bool) {
	if known {
		return s.Matches(l), true
	}
	certain = true
	for i := range s {
		if s[i].Key != NameLabel {
			certain = false
		} else if !s[i : i+1].Matches(l) {
			return false, true
		}
	}
	return true, certain
}
