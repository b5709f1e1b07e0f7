package share

import "container/list"

// Line holds those who wait for something, and calls them in turn: one of each owner after another, and those of one
// owner in the order in which they came. So an owner with many in the line delays another one by one call. The zero
// Line is empty. It is not safe for concurrent use.
type Line[K comparable, V any] struct {
	owners map[K]*list.Element // of turns
	turns  list.List           // of *queue[K, V]; the front is called next
	n      int
}

// queue holds the places of one owner.
type queue[K comparable, V any] struct {
	key    K
	places list.List // of *Place[K, V]
}

// Place is a place in a Line. It must not be copied while it is in one. The zero Place is in none.
type Place[K comparable, V any] struct {
	// Value belongs to the caller.
	Value V

	turn *list.Element // of the Line's turns; nil: in no Line
	at   *list.Element // of the owner's places
}

// Len returns how many wait.
func (l *Line[K, V]) Len() int { return l.n }

// Add puts p at the end of the places of the owner key. It panics when p is in a Line already.
func (l *Line[K, V]) Add(p *Place[K, V], key K) {
	if p.turn != nil {
		panic("share: Add of a Place that is in a Line")
	}
	if l.owners == nil {
		l.owners = map[K]*list.Element{}
	}
	p.turn = l.owners[key]
	if p.turn == nil {
		p.turn = l.turns.PushBack(&queue[K, V]{key: key})
		l.owners[key] = p.turn
	}
	p.at = p.turn.Value.(*queue[K, V]).places.PushBack(p)
	l.n++
}

// First returns the place that Next would return, and leaves it in the Line.
func (l *Line[K, V]) First() *Place[K, V] {
	if l.n == 0 {
		return nil
	}
	return l.turns.Front().Value.(*queue[K, V]).places.Front().Value.(*Place[K, V])
}

// Next takes the place whose turn it is out of the Line, and returns nil when nobody waits. It is another owner's turn
// then.
func (l *Line[K, V]) Next() *Place[K, V] {
	p := l.First()
	if p != nil {
		l.turns.MoveToBack(p.turn)
		l.Remove(p)
	}
	return p
}

// NextOf takes the first place of one owner out of the Line, whoever's turn it is, and returns nil when none of the
// owner waits.
func (l *Line[K, V]) NextOf(key K) *Place[K, V] {
	turn := l.owners[key]
	if turn == nil {
		return nil
	}
	p := turn.Value.(*queue[K, V]).places.Front().Value.(*Place[K, V])
	l.Remove(p)
	return p
}

// Remove takes p out of the Line. It reports whether p was there.
func (l *Line[K, V]) Remove(p *Place[K, V]) bool {
	if p.turn == nil {
		return false
	}
	q := p.turn.Value.(*queue[K, V])
	q.places.Remove(p.at)
	if q.places.Len() == 0 {
		l.turns.Remove(p.turn)
		delete(l.owners, q.key)
	}
	p.turn, p.at = nil, nil
	l.n--
	return true
}
