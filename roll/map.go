package roll

import (
	"iter"
	"slices"
)

const (
	fork  = 4 // how many bits of a hash lead from one node to the next
	forks = 1 << fork
	// crowd is how many keys a node has at most before it forks. A node beyond the last bit of the hash has any number.
	crowd = 8
	deep  = 64 / fork
)

// Map is a map that never changes. Callers give the hash of each key, which must always be the same, and which nobody
// else may be able to choose: keys with one hash are compared one by one. The memory for paths to keys that were
// deleted stays. The zero value is empty.
type Map[K comparable, V any] struct {
	root *node[K, V]
	n    int
}

// node is a part of a Map: either it forks, or it has pairs.
type node[K comparable, V any] struct {
	kids  *[forks]*node[K, V]
	pairs []pair[K, V]
	by    *byte // the Editor that made it, and may change it
}

type pair[K comparable, V any] struct {
	hash uint64
	key  K
	is   V
}

// Len returns the number of keys.
func (m Map[K, V]) Len() int { return m.n }

// Get returns the value of a key, or false when there is none. It allocates nothing.
func (m Map[K, V]) Get(hash uint64, key K) (is V, ok bool) {
	n := m.root
	for h := hash; n != nil && n.kids != nil; h >>= fork {
		n = n.kids[h&(forks-1)]
	}
	if n != nil {
		for i := range n.pairs {
			if p := &n.pairs[i]; p.key == key {
				return p.is, true
			}
		}
	}
	return is, false
}

// All yields all keys and values, in no order.
func (m Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { m.root.each(yield) }
}

func (n *node[K, V]) each(yield func(K, V) bool) bool {
	if n == nil {
		return true
	}
	for i := range n.pairs {
		if !yield(n.pairs[i].key, n.pairs[i].is) {
			return false
		}
	}
	if n.kids != nil {
		for _, kid := range n.kids {
			if !kid.each(yield) {
				return false
			}
		}
	}
	return true
}

// Edit returns an Editor that begins with m. m stays as it is.
func (m Map[K, V]) Edit() *Editor[K, V] { return &Editor[K, V]{Map: m, by: new(byte)} }

// Editor makes a Map out of another one. A node that it makes is changed in place, so many changes cost little more
// than what they change. It is not safe for concurrent use.
type Editor[K comparable, V any] struct {
	Map[K, V]
	by *byte
}

// Done returns the Map as it is now. The Editor may go on with it.
func (e *Editor[K, V]) Done() Map[K, V] {
	e.by = new(byte)
	return e.Map
}

// Set sets the value of a key.
func (e *Editor[K, V]) Set(hash uint64, key K, is V) {
	at, h, depth := e.lead(hash)
	n := *at
	for i := range n.pairs {
		if n.pairs[i].key == key {
			n.pairs[i].is = is
			return
		}
	}
	e.n++
	n.pairs = append(n.pairs, pair[K, V]{hash, key, is})
	for ; len(n.pairs) > crowd && depth < deep; depth++ {
		// All pairs of a node may have the same next bits, so the fuller kid may have to fork, too.
		n = e.split(n, depth, h)
		h >>= fork
	}
}

// split makes n fork, and returns the kid on the way of h.
func (e *Editor[K, V]) split(n *node[K, V], depth int, h uint64) *node[K, V] {
	n.kids = new([forks]*node[K, V])
	for _, p := range n.pairs {
		kid := &n.kids[p.hash>>(depth*fork)&(forks-1)]
		if *kid == nil {
			*kid = &node[K, V]{by: e.by}
		}
		(*kid).pairs = append((*kid).pairs, p)
	}
	n.pairs = nil
	return n.kids[h&(forks-1)]
}

// Delete takes a key out, if it is there.
func (e *Editor[K, V]) Delete(hash uint64, key K) {
	if _, there := e.Get(hash, key); !there {
		return
	}
	at, _, _ := e.lead(hash)
	n := *at
	n.pairs = slices.DeleteFunc(n.pairs, func(p pair[K, V]) bool { return p.key == key })
	e.n--
	if len(n.pairs) == 0 {
		*at = nil
	}
}

// lead returns where the node of a hash stands, with all nodes on the way to it made the Editor's own, the bits of the
// hash that are left there, and how deep it is.
func (e *Editor[K, V]) lead(hash uint64) (at **node[K, V], left uint64, depth int) {
	at, left = &e.root, hash
	for {
		n := *at
		switch {
		case n == nil:
			n = &node[K, V]{by: e.by}
		case n.by != e.by:
			own := &node[K, V]{pairs: slices.Clone(n.pairs), by: e.by}
			if n.kids != nil {
				kids := *n.kids
				own.kids = &kids
			}
			n = own
		}
		if *at = n; n.kids == nil {
			return at, left, depth
		}
		at, left, depth = &n.kids[left&(forks-1)], left>>fork, depth+1
	}
}
