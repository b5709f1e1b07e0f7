package control

import (
	"cmp"
	"maps"
	"slices"

	"tapestry.dev/tapestry/kube"
)

// order says which change is written next when there are more than can be written before the next decision. Whoever
// can have objects change all the time, as a Node can that reports something else of them each second, would otherwise
// take all writes from those that come later in the snapshot. The zero value is ready.
//
// Changes are taken by turns from two lists. In the one, namespaces take turns, the one that was written least
// recently first, and in each the object that was: so a change waits for one write of each other namespace, and for
// one of each other object of its own. In the other the object that was written least recently is first, wherever it
// is: so objects that are new or rest do not wait for those that never do, also where those are in all namespaces.
type order struct {
	n uint64 // counts the writes that were tried
	// objects and namespaces have the number of their last write. Those that are absent were written before all others.
	objects    map[kube.Ref]uint64
	namespaces map[string]uint64
}

// An order remembers rememberLeast objects and namespaces, and rememberTimes as many as there are changes: of those
// that change all the time it has to know all.
const (
	rememberLeast = 1000
	rememberTimes = 4
)

// tried notes a write of an object, whether or not it succeeded: one that cannot be written takes its turns, and no
// more.
func (o *order) tried(obj kube.Ref) {
	if o.objects == nil {
		o.objects, o.namespaces = map[kube.Ref]uint64{}, map[string]uint64{}
	}
	o.n++
	o.objects[obj], o.namespaces[obj.Namespace] = o.n, o.n
}

// forget removes the older half of what is remembered when it is more than most. That changes the order of those alone.
func forget[K comparable](last map[K]uint64, most int) {
	if len(last) <= most {
		return
	}
	middle := slices.Sorted(maps.Values(last))[len(last)/2]
	maps.DeleteFunc(last, func(_ K, n uint64) bool { return n < middle })
}

// of returns changes in the order in which they are to be written. Each object is in one of them at most.
func (o *order) of(list []change) []change {
	most := rememberLeast + rememberTimes*len(list)
	forget(o.objects, most)
	forget(o.namespaces, most)
	type place struct {
		change
		object, namespace uint64 // their last writes
		turn              int    // in the namespace
		taken             bool
	}
	inTurns := make([]*place, len(list))
	for i, c := range list {
		ref := kube.RefOf(c.now)
		inTurns[i] = &place{change: c, object: o.objects[ref], namespace: o.namespaces[ref.Namespace]}
	}
	byObject := func(a, b *place) int { return cmp.Compare(a.object, b.object) }
	slices.SortStableFunc(inTurns, byObject)
	turns := map[string]int{}
	for _, p := range inTurns {
		ns := p.now.GetNamespace()
		p.turn = turns[ns]
		turns[ns]++
	}
	slices.SortStableFunc(inTurns, func(a, b *place) int {
		return cmp.Or(cmp.Compare(a.turn, b.turn), cmp.Compare(a.namespace, b.namespace))
	})
	rested := slices.Clone(inTurns)
	slices.SortStableFunc(rested, byObject)
	out := make([]change, 0, len(list))
	take := func(p *place) {
		if !p.taken {
			p.taken, out = true, append(out, p.change)
		}
	}
	for i := range list {
		take(inTurns[i])
		take(rested[i])
	}
	return out
}
