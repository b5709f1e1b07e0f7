package policy

import (
	"cmp"
	"slices"
	"sync"

	"tapestry.dev/tapestry/netstack/policy/law"
)

// realm is the policies of one namespace together with the pods that they may name. It is compiled when the first pod
// needs it: most namespaces have no pods on a node. Its methods are safe for concurrent use.
type realm struct {
	namespace string
	list      []*Policy
	serials   []uint32 // of list
	// code compiles list once.
	code    func() *code
	reading *law.Reading
}

// code is what the policies of one namespace are compiled to. All rules in force of both directions have numbers, in
// the order of policies.
type code struct {
	law *law.Law
	// of says which rules each policy has, for ingress and for egress.
	of [][2]numbers
	// known are what the rules are known by outside.
	known []law.ID
}

// numbers are those from first on that are smaller than end.
type numbers struct{ first, end int }

// newRealm returns the realm of a namespace, among no pods.
func newRealm(namespace string, list []*Policy, serials []uint32) *realm {
	return &realm{namespace: namespace, list: list, serials: serials, code: sync.OnceValue(func() *code { return codeOf(list, serials) })}
}

// among returns a realm with the policies of r, among these namespaces and groups.
func (r *realm) among(namespaces map[string]law.Labels, g *law.Groups) *realm {
	among := *r
	among.reading = law.NewReading(func() *law.Law { return r.code().law }, r.namespace, namespaces, g)
	return &among
}

// codeOf compiles the policies of one namespace, which have these serial numbers.
func codeOf(list []*Policy, serials []uint32) *code {
	c := &code{of: make([][2]numbers, len(list))}
	var rules []*law.Rule
	for i, p := range list {
		for _, egress := range directions {
			these, at := p.rules(egress), &c.of[i][which(egress)]
			at.first = len(rules)
			for j := range these.List {
				if these.Isolates {
					rules, c.known = append(rules, &these.List[j]), append(c.known, law.IDOf(serials[i], false, egress, j))
				}
			}
			at.end = len(rules)
		}
	}
	c.law = law.Of(rules)
	return c
}

var directions = [...]bool{true, false} // whether it is egress

// rules returns what a policy permits in one direction.
func (p *Policy) rules(egress bool) *Rules {
	if egress {
		return &p.Egress
	}
	return &p.Ingress
}

// which returns 1 for true.
func which(b bool) int {
	if b {
		return 1
	}
	return 0
}

// selects reports whether a policy of a pod's namespace selects the pod for a direction.
func (p *Policy) selects(pod *Pod, egress bool) bool {
	return p.rules(egress).Isolates && p.Pods.Matches(pod.Labels)
}

// side returns what the policies permit a pod in one direction; nil for everything.
func (r *realm) side(p *Pod, egress bool) *side {
	var s *side
	for i, one := range r.list {
		if !one.selects(p, egress) {
			continue
		}
		if s == nil {
			c := r.code()
			s = &side{reading: r.reading, code: c, rules: c.law.Set(), egress: egress, pod: p, isolates: uint64(law.IDOf(r.serials[i], false, egress, -1))}
		}
		for n := s.code.of[i][which(egress)]; n.first < n.end; n.first++ {
			s.rules.Add(n.first)
		}
	}
	return s
}

// spacesOf returns the labels of namespaces, by name.
func spacesOf(list []*Namespace) map[string]law.Labels {
	spaces := make(map[string]law.Labels, len(list))
	for _, ns := range list {
		labels := ns.Labels
		i, there := slices.BinarySearchFunc(labels, law.NameLabel, func(l law.Label, key string) int { return cmp.Compare(l.Key, key) })
		if !there {
			labels = slices.Insert(slices.Clone(labels), i, law.Label{Key: law.NameLabel, Value: ns.Name})
		}
		spaces[ns.Name] = labels
	}
	return spaces
}
