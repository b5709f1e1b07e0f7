package services

import (
	"cmp"
	"math/bits"
	"slices"
)

// tree is a set of many backends. It never changes; a tree made from another shares nearly all memory with it, so that
// one backend costs the nodes on the way to it and not the set.
//
// Backends are sorted into nodes by the bits of their ids, from the highest on. A node with more than rendezvousMax
// backends forks, and one with fewer does not, so that the shape follows from the backends alone, whatever was there
// before. At a fork a flow takes each way as often as that way has backends; among the backends of the last node it
// takes one by rendezvous hashing. So each backend gets an equal share, and one that comes or goes moves the flows of a
// few backends: those whose hashes lie where the shares of the ways meet.
//
// nil is an empty tree.
type tree struct {
	n    int
	leaf []entry // sorted by id; nil for a node that forks
	*ways
}

// ways is where a node forks. upTo[i] is how many backends the kids up to i have.
type ways struct {
	upTo [1 << wayBits]uint32
	kids [1 << wayBits]*tree
}

// wayBits is how many bits of an id lead from one node to the next.
const wayBits = 4

// entry is a backend, and how often it is listed: one pod may be in several parts of a Service's endpoints.
type entry struct {
	backend
	times int32
}

// newTree returns a tree of a list of backends that is sorted by id.
func newTree(list []backend) *tree { return (*tree)(nil).with(nil, list) }

// with returns t without the backends gone and with the backends come; both are sorted by id. Every backend of gone
// must be in t.
func (t *tree) with(gone, come []backend) *tree {
	return t.changed(changes(gone, come), 0)
}

// changes joins two sorted lists into one, in which a backend's times are those by which it is listed more often than
// before. Backends that are listed as often are left out.
func changes(gone, come []backend) (list []entry) {
	add := func(b backend, by int32) {
		if last := len(list) - 1; last >= 0 && list[last].id == b.id {
			if list[last].times += by; by > 0 {
				list[last].backend = b
			}
			if list[last].times == 0 {
				list = list[:last]
			}
			return
		}
		list = append(list, entry{b, by})
	}
	for len(gone) > 0 || len(come) > 0 {
		if len(come) == 0 || len(gone) > 0 && gone[0].id <= come[0].id {
			add(gone[0], -1)
			gone = gone[1:]
		} else {
			add(come[0], 1)
			come = come[1:]
		}
	}
	return list
}

// way returns which way of a node at that depth leads to an id.
func way(id uint64, depth int) int { return int(id << (depth * wayBits) >> (64 - wayBits)) }

func (t *tree) changed(list []entry, depth int) *tree {
	switch {
	case len(list) == 0:
		return t
	case t == nil:
		return grown(merged(nil, list), depth)
	case t.ways == nil:
		return grown(merged(t.leaf, list), depth)
	}
	next := &tree{ways: &ways{kids: t.kids}}
	for len(list) > 0 {
		i, same := way(list[0].id, depth), 1
		for same < len(list) && way(list[same].id, depth) == i {
			same++
		}
		next.kids[i] = t.kids[i].changed(list[:same], depth+1)
		list = list[same:]
	}
	if next.count(); next.n <= rendezvousMax {
		return grown(next.entries(nil), depth)
	}
	return next
}

// merged returns a sorted list of entries with others added to it, without those that are listed no more.
func merged(list, more []entry) []entry {
	out := make([]entry, 0, len(list)+len(more))
	for len(list) > 0 || len(more) > 0 {
		var e entry
		switch {
		case len(more) == 0 || len(list) > 0 && list[0].id < more[0].id:
			e, list = list[0], list[1:]
		case len(list) == 0 || more[0].id < list[0].id:
			e, more = more[0], more[1:]
		default:
			e = more[0]
			e.times += list[0].times
			list, more = list[1:], more[1:]
		}
		if e.times > 0 {
			out = append(out, e)
		}
	}
	return out
}

// grown returns a node at that depth with a sorted list of entries.
func grown(list []entry, depth int) *tree {
	switch {
	case len(list) == 0:
		return nil
	case len(list) <= rendezvousMax:
		return &tree{n: len(list), leaf: slices.Clone(list)} // a node by itself is garbage by itself
	}
	t := &tree{ways: &ways{}}
	for len(list) > 0 {
		i := way(list[0].id, depth)
		same, _ := slices.BinarySearchFunc(list, i+1, func(e entry, i int) int { return cmp.Compare(way(e.id, depth), i) })
		t.kids[i] = grown(list[:same], depth+1)
		list = list[same:]
	}
	t.count()
	return t
}

// count sets how many backends a node that forks has.
func (t *tree) count() {
	t.n = 0
	for i, kid := range t.kids {
		t.n += kid.size()
		t.upTo[i] = uint32(t.n)
	}
}

// entries appends the entries of t to a list, sorted.
func (t *tree) entries(list []entry) []entry {
	if t == nil {
		return list
	}
	if t.ways == nil {
		return append(list, t.leaf...)
	}
	for _, kid := range t.kids {
		list = kid.entries(list)
	}
	return list
}

// size returns the number of backends.
func (t *tree) size() int {
	if t == nil {
		return 0
	}
	return t.n
}

// at returns backend number i, in the order of their ids.
func (t *tree) at(i int) *backend {
	for t.ways != nil {
		k := 0
		for int(t.upTo[k]) <= i {
			k++
		}
		if k > 0 {
			i -= int(t.upTo[k-1])
		}
		t = t.kids[k]
	}
	return &t.leaf[i].backend
}

// search returns the number of the first backend whose id is not less, and whether it has that id.
func (t *tree) search(id uint64) (i int, found bool) {
	for depth := 0; t != nil && t.ways != nil; depth++ {
		k := way(id, depth)
		if k > 0 {
			i += int(t.upTo[k-1])
		}
		t = t.kids[k]
	}
	if t == nil {
		return i, false
	}
	at, found := slices.BinarySearchFunc(t.leaf, id, func(e entry, id uint64) int { return cmp.Compare(e.id, id) })
	return i + at, found
}

// winner returns the backend for a hash. t must not be empty. Only the upper part of ids counts, so that ports with the
// same pods choose alike. The whole id decides among backends of one pod or host, which serve at several port numbers.
func (t *tree) winner(h uint64) *backend {
	for t.ways != nil {
		h = finish(h + mixA) // every fork has bits of its own
		share, _ := bits.Mul64(h, uint64(t.n))
		i := 0
		for uint64(t.upTo[i]) <= share {
			i++
		}
		t = t.kids[i]
	}
	best, most := 0, score(h, t.leaf[0].id&podMask)
	for i := 1; i < len(t.leaf); i++ {
		w := score(h, t.leaf[i].id&podMask)
		if w > most || w == most && score(h, t.leaf[i].id) > score(h, t.leaf[best].id) {
			best, most = i, w
		}
	}
	return &t.leaf[best].backend
}
