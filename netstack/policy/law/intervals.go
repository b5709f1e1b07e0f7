package law

import (
	"slices"
	"sort"
	"unsafe"
)

// intervals says, for each place, which rules are for it. Places are cut into intervals, in each of which that is the
// same.
type intervals struct {
	starts []place // of the intervals, in order; before the first one there are no rules
	rules  []Set   // of each interval, the same memory where they are equal
	none   Set
}

// edge is where a rule begins or ceases to be for places.
type edge struct {
	at   place
	rule int32
	by   int32 // 1 or -1
}

// cut makes intervals of edges, of which no rule has a number of n or more. It sorts edges.
func cut(edges []edge, n int) intervals {
	slices.SortFunc(edges, func(a, b edge) int { return a.at.compare(b.at) })
	cuts := intervals{none: newSet(n)}
	depth, now, known := make([]int32, n), newSet(n), map[string]Set{}
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			e := &edges[i]
			was := depth[e.rule]
			if depth[e.rule] = was + e.by; (was > 0) != (depth[e.rule] > 0) {
				now.toggle(int(e.rule))
			}
		}
		rules := intern(known, now)
		if k := len(cuts.rules); k > 0 && &cuts.rules[k-1][0] == &rules[0] {
			continue
		}
		cuts.starts, cuts.rules = append(cuts.starts, at), append(cuts.rules, rules)
	}
	return cuts
}

// intern returns the one copy of s, which has a word at least.
func intern(known map[string]Set, s Set) Set {
	key := func(s Set) string { return unsafe.String((*byte)(unsafe.Pointer(&s[0])), 8*len(s)) }
	if one, ok := known[key(s)]; ok {
		return one
	}
	one := slices.Clone(s)
	known[key(one)] = one
	return one
}

// at returns the rules that are for p.
func (c *intervals) at(p place) Set {
	i := sort.Search(len(c.starts), func(i int) bool { return p.less(c.starts[i]) })
	if i == 0 {
		return c.none
	}
	return c.rules[i-1]
}
