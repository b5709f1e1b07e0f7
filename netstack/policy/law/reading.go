package law

import (
	"sync"
	"sync/atomic"
)

// Reading says which rules of a Law name each group of pods. It finds that out when somebody asks first. Its methods
// are safe for concurrent use.
type Reading struct {
	law func() *Law
	own string
	// spaces are the labels of the namespaces that are known.
	spaces map[string]Labels
	groups *Groups
	// ids are the rules that name each group, by the groups' numbers. It is nil until somebody asks.
	ids atomic.Pointer[[]Named]

	mu sync.Mutex
	// mu guards the rest. like has what was found for the groups that no rule tells from each other.
	like map[string]Named
	key  []byte
}

// Named are the rules that name a group: for certain, and possibly, which are more if not all labels of its namespace
// are known. Where they are not more, the two are the same memory. They must not be changed.
type Named struct{ Certain, Possible Set }

// Sure reports whether all that possibly name the group do so for certain.
func (n *Named) Sure() bool { return &n.Certain[0] == &n.Possible[0] }

// NewReading returns the Reading of a Law, which is not asked for before the Reading is. own is the namespace of its
// rules, "" if they are of none. spaces are the labels of the namespaces that are known.
func NewReading(law func() *Law, own string, spaces map[string]Labels, g *Groups) *Reading {
	return &Reading{law: law, own: own, spaces: spaces, groups: g, like: map[string]Named{}}
}

// Asked reports whether somebody has needed the Reading.
func (r *Reading) Asked() bool { return r.ids.Load() != nil }

// Len returns of how many groups something is remembered, and how many of these the rules tell from each other.
func (r *Reading) Len() (groups, unlike int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ids := r.ids.Load(); ids != nil {
		groups = len(*ids)
	}
	return groups, len(r.like)
}

// Naming returns the rules that name a group.
func (r *Reading) Naming(group int) Named {
	if ids := r.ids.Load(); ids != nil && group < len(*ids) {
		return (*ids)[group]
	}
	return r.learn()[group]
}

// Learn looks at all groups that are new.
func (r *Reading) Learn() { r.learn() }

// learn looks at all groups that are new. It returns the rules that name each group.
func (r *Reading) learn() []Named {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := *r.groups.all.Load()
	var ids []Named
	if before := r.ids.Load(); before != nil {
		if ids = *before; len(ids) >= len(all) {
			return ids
		}
	}
	if ids == nil {
		none := r.law().none
		ids = append(ids, Named{none, none}) // for nobody
	}
	for i := len(ids); i < len(all); i++ {
		ids = append(ids, r.look(&all[i])) // none looks beyond the end of a list that was stored before
	}
	r.ids.Store(&ids)
	return ids
}

func (r *Reading) look(g *group) Named {
	l, own, nodes := r.law(), g.namespace == r.own, g.namespace == ofNodes
	if !own && !nodes && !l.parties.crosses {
		return Named{l.none, l.none}
	}
	labels, known := r.spaces[g.namespace]
	if !known {
		labels = Labels{{NameLabel, g.namespace}}
	}
	r.key = l.parties.spaces.appendKey(append(r.key[:0], which(own), which(known), which(nodes)), labels)
	r.key = l.parties.pods.appendKey(r.key, g.labels)
	found, before := r.like[string(r.key)]
	if !before {
		in := space{labels, own, known, nodes}
		certain := l.Set()
		l.parties.naming(certain, g, in, true)
		if found = (Named{certain, certain}); !known && !nodes {
			found.Possible = l.Set()
			l.parties.naming(found.Possible, g, in, false)
		}
		r.like[string(r.key)] = found
	}
	return found
}

// which returns 1 for true.
func which(b bool) byte {
	if b {
		return 1
	}
	return 0
}
