package tiers

import (
	"cmp"
	"iter"
	"slices"
	"sync"

	"tapestry.dev/tapestry/netstack/policy/law"
)

// Tiers are the policies of a cluster among its pods. They never change, and their methods are safe for concurrent
// use.
type Tiers struct {
	list    []*Policy
	tiers   [count]tier
	serials map[*Policy]uint32
	next    uint32
	world   World
	// about says whether there are rules, for ingress and for egress; nodes whether one names nodes.
	about [2]bool
	nodes bool
}

// World is where policies are: the labels of the namespaces that are known, by name, and the groups of pods and nodes.
type World struct {
	Spaces map[string]law.Labels
	Groups *law.Groups
}

// tier is the policies of one tier, in the order in which they come.
type tier struct {
	list    []*Policy
	code    func() *code // compiles list once
	reading *law.Reading
}

// code is what a tier is compiled to. The rules of both directions have numbers, in the order in which they come.
type code struct {
	law     *law.Law
	of      [][2]numbers // by policy, for ingress and for egress
	actions []Action
	known   []law.ID
}

// numbers are those from first on that are smaller than end.
type numbers struct{ first, end int }

// Of returns policies, none of which is twice in the list, in a World; nil for none. What is the same as in before,
// which may be nil, is not compiled again, and policies that go on keep their IDs.
func Of(list []*Policy, w World, before *Tiers) *Tiers {
	if len(list) == 0 {
		return nil
	}
	if before == nil {
		before = &Tiers{next: 1}
	}
	t := &Tiers{list: list, serials: make(map[*Policy]uint32, len(list)), next: before.next, world: w}
	for _, p := range list {
		serial, goesOn := before.serials[p]
		if !goesOn {
			serial = t.next
			t.next++
		}
		t.serials[p] = serial
		t.tiers[p.Tier].list = append(t.tiers[p.Tier].list, p)
		for _, egress := range directions {
			rules := p.rules(egress)
			t.about[which(egress)] = t.about[which(egress)] || len(rules) > 0
			t.nodes = t.nodes || slices.ContainsFunc(rules, func(r Rule) bool {
				return slices.ContainsFunc(r.Parties, func(p law.Party) bool { return p.Nodes })
			})
		}
	}
	for i := range t.tiers {
		now, old := &t.tiers[i], &before.tiers[i]
		slices.SortFunc(now.list, func(a, b *Policy) int {
			return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Name, b.Name))
		})
		if now.code = old.code; now.code == nil || !slices.Equal(now.list, old.list) {
			list, serials := now.list, t.serials
			now.code = sync.OnceValue(func() *code { return codeOf(list, serials) })
		}
		code := now.code
		now.reading = law.NewReading(func() *law.Law { return code().law }, "", w.Spaces, w.Groups)
	}
	return t
}

var directions = [...]bool{true, false} // whether it is egress

// which returns 1 for true.
func which(b bool) int {
	if b {
		return 1
	}
	return 0
}

func codeOf(list []*Policy, serials map[*Policy]uint32) *code {
	c := &code{of: make([][2]numbers, len(list))}
	var rules []*law.Rule
	for i, p := range list {
		for _, egress := range directions {
			these, at := p.rules(egress), &c.of[i][which(egress)]
			at.first = len(rules)
			for j := range these {
				rules, c.actions = append(rules, &these[j].Rule), append(c.actions, these[j].Action)
				c.known = append(c.known, law.IDOf(serials[p], true, egress, j))
			}
			at.end = len(rules)
		}
	}
	c.law = law.Of(rules)
	return c
}

// About reports whether there are rules for a direction. There are none of no Tiers.
func (t *Tiers) About(egress bool) bool { return t != nil && t.about[which(egress)] }

// NameNodes reports whether a rule names nodes. None of no Tiers does.
func (t *Tiers) NameNodes() bool { return t != nil && t.nodes }

// Learn looks at all groups that are new, for the tiers that somebody has asked, or at once if needed is set.
func (t *Tiers) Learn(needed bool) {
	for i := range t.tiers {
		if one := &t.tiers[i]; len(one.list) > 0 && (needed || one.reading.Asked()) {
			one.reading.Learn()
		}
	}
}

// All yields the policies with their IDs; none of no Tiers.
func (t *Tiers) All() iter.Seq2[law.ID, *Policy] {
	return func(yield func(law.ID, *Policy) bool) {
		if t == nil {
			return
		}
		for _, p := range t.list {
			if !yield(law.IDOf(t.serials[p], true, true, -1).Policy(), p) {
				return
			}
		}
	}
}
