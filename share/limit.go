package share

import (
	"fmt"
	"sync"
)

// Options are the choices for New.
type Options[K comparable] struct {
	// Total is the number of units, at least 1.
	Total int
	// Reserve is how many of them are for Own alone: 0 or more, and less than Total.
	Reserve int
	// Own is the owner that Reserve is for. It means nothing when Reserve is 0.
	Own K
	// Keep is set when nothing that is held can be taken away.
	Keep bool
}

// Limit shares out units among owners named by K. V is what the caller wants to know of a claim that it lost. Its methods
// are safe for concurrent use.
type Limit[K comparable, V any] struct {
	options Options[K]

	mu     sync.Mutex // guards below, and the fields of every Claim but Value
	free   int        // units that nobody holds and that are not reserved
	owners map[K]*owner[K, V]
	heap   []*owner[K, V] // by charge, the largest first
	spare  []*owner[K, V] // owners without claims, to be used again
	stats  Stats
}

// Claim is the right to one unit. It belongs to the caller, usually as a field of the thing that the unit is for, and
// must not be copied or moved while it is held. The zero Claim holds nothing.
type Claim[K comparable, V any] struct {
	// Value is the caller's, set before Acquire.
	Value V

	owner        *owner[K, V] // nil: it holds no unit
	older, newer *Claim[K, V]
}

// owner is somebody who holds at least one claim.
type owner[K comparable, V any] struct {
	key            K
	held           int // claims
	reserve        int // how many of them are not charged
	at             int // its place in the heap
	oldest, newest *Claim[K, V]
}

// charge is the number of units that count for the rule.
func (o *owner[K, V]) charge() int { return max(0, o.held-o.reserve) }

// Stats are counters since New, and the state now.
type Stats struct {
	// Held is the number of units in use, Owners how many owners hold them, and Most how many the largest owner is
	// charged for.
	Held, Owners, Most int
	// TakenFromMost and TakenFromOwn count claims that were lost, to others and to their own owner.
	TakenFromMost, TakenFromOwn uint64
	// Refused counts calls of Acquire that got nothing.
	Refused uint64
}

// New makes a Limit of which nothing is held. It panics when Total or Reserve is out of range.
func New[K comparable, V any](o Options[K]) *Limit[K, V] {
	if o.Total < 1 || o.Reserve < 0 || o.Reserve >= o.Total {
		panic(fmt.Sprintf("share: Total is %d and Reserve is %d; Total must be at least 1, and Reserve within 0..Total-1", o.Total, o.Reserve))
	}
	return &Limit[K, V]{options: o, free: o.Total - o.Reserve, owners: map[K]*owner[K, V]{}}
}

// Acquire gets a unit for owner and has c hold it. When that took a unit from another claim, that one is lost: it holds
// nothing any more, and the caller ends what it was for. ok is false when there was no unit to be had. It panics when c
// holds a unit already.
func (l *Limit[K, V]) Acquire(c *Claim[K, V], key K) (lost *Claim[K, V], ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.owner != nil {
		panic("share: Acquire of a Claim that holds a unit")
	}
	o := l.owner(key)
	switch l.decide(o) {
	case Refuse:
		l.dropIfEmpty(o)
		l.stats.Refused++
		return nil, false
	case Most:
		lost = l.heap[0].oldest
		l.stats.TakenFromMost++
	case Own:
		lost = o.oldest
		l.stats.TakenFromOwn++
	case Free:
	}
	// c comes first, so that o is not forgotten in between when lost was its only claim.
	l.add(o, c)
	if lost != nil {
		l.remove(lost)
	}
	return lost, true
}

func (l *Limit[K, V]) decide(o *owner[K, V]) Decision {
	switch {
	case o.held < o.reserve:
		return Free
	case l.options.Keep:
		return DecideKept(o.charge(), l.free)
	}
	return Decide(o.charge(), l.heap[0].charge(), l.free)
}

// Touch notes that what c is for was used just now. It does nothing when c holds no unit.
func (l *Limit[K, V]) Touch(c *Claim[K, V]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := c.owner; o != nil && o.newest != c {
		o.unchain(c)
		o.chain(c)
	}
}

// Release gives the unit of c back. It reports whether c held one: it does not after it was lost.
func (l *Limit[K, V]) Release(c *Claim[K, V]) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.owner == nil {
		return false
	}
	l.remove(c)
	return true
}

// Held is the number of units that an owner holds, reserved ones among them.
func (l *Limit[K, V]) Held(key K) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.owners[key]; o != nil {
		return o.held
	}
	return 0
}

// Stats tells the counters and the state.
func (l *Limit[K, V]) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Owners = len(l.heap)
	if len(l.heap) > 0 {
		s.Most = l.heap[0].charge()
	}
	return s
}

// add has c hold a unit of o.
func (l *Limit[K, V]) add(o *owner[K, V], c *Claim[K, V]) {
	if o.held++; o.held > o.reserve {
		l.free--
	}
	l.stats.Held++
	c.owner = o
	o.chain(c)
	l.up(o.at)
}

// remove takes its unit from c.
func (l *Limit[K, V]) remove(c *Claim[K, V]) {
	o := c.owner
	if o.held > o.reserve {
		l.free++
	}
	o.held--
	l.stats.Held--
	c.owner = nil
	o.unchain(c)
	l.down(o.at)
	l.dropIfEmpty(o)
}

func (o *owner[K, V]) chain(c *Claim[K, V]) {
	if c.older = o.newest; c.older != nil {
		c.older.newer = c
	} else {
		o.oldest = c
	}
	o.newest = c
}

func (o *owner[K, V]) unchain(c *Claim[K, V]) {
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		o.oldest = c.newer
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		o.newest = c.older
	}
	c.older, c.newer = nil, nil
}
