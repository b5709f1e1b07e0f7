package share

import (
	"fmt"
	"sync"
)

// Options configures a Limit.
type Options[K comparable] struct {
	// Total is the number of units, at least 1.
	Total int
	// Reserve is how many units Own gets in any case: at least 0, and less than Total.
	Reserve int
	// Own is the owner for whom Reserve is. It means nothing when Reserve is 0.
	Own K
	// Keep is set when no unit that is held can be taken away.
	Keep bool
}

// Limit shares out units among owners named by K. V is what the caller needs to know of a claim that was lost. Its
// methods are safe for concurrent use.
type Limit[K comparable, V any] struct {
	options Options[K]

	mu     sync.Mutex // guards the fields below, and those of every Claim except Value
	owners map[K]*owner[K, V]
	order  Ranking[*owner[K, V]]
	spare  []*owner[K, V] // owners without claims, for reuse
	kept   int            // units of the reserve that are not in use
	stats  Stats
}

// Claim is the right to one unit. It belongs to the caller, usually as a field of the thing for which the unit is used,
// and must not be copied or moved while it holds a unit. The zero Claim holds nothing.
type Claim[K comparable, V any] struct {
	// Value belongs to the caller, who sets it before Acquire.
	Value V

	owner        *owner[K, V] // nil when it holds no unit
	older, newer *Claim[K, V]
}

// owner is somebody who holds at least one claim.
type owner[K comparable, V any] struct {
	account        Account[*owner[K, V]]
	key            K
	held           int // claims
	reserve        int // how many of them are not charged
	oldest, newest *Claim[K, V]
}

// Stats holds counters since New, and the present state.
type Stats struct {
	// Held is the number of units in use, Owners the number of owners who hold them, and Most the number of units that
	// the largest owner is charged for.
	Held, Owners, Most int
	// TakenFromMost counts claims that were lost to another owner, TakenFromOwn those that were lost to a claim of the
	// same owner.
	TakenFromMost, TakenFromOwn uint64
	// Refused counts calls of Acquire or Take that got nothing.
	Refused uint64
}

// New returns a Limit of which nothing is held. It panics when Total or Reserve is out of range.
func New[K comparable, V any](o Options[K]) *Limit[K, V] {
	if o.Total < 1 || o.Reserve < 0 || o.Reserve >= o.Total {
		panic(fmt.Sprintf("share: Total is %d and Reserve is %d; Total must be at least 1, and Reserve within 0..Total-1", o.Total, o.Reserve))
	}
	return &Limit[K, V]{options: o, kept: o.Reserve, owners: map[K]*owner[K, V]{}}
}

// Acquire gets a unit for the owner key; c then holds it. When the unit was taken from another claim, that claim is
// returned as lost: it holds nothing any more, and the caller must end the use of its unit. ok is false when no unit
// was to be had. Acquire panics when c holds a unit already.
func (l *Limit[K, V]) Acquire(c *Claim[K, V], key K) (lost *Claim[K, V], ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.owner != nil {
		panic("share: Acquire of a Claim that holds a unit")
	}
	o := l.owner(key)
	d := l.decide(o)
	switch d {
	case Refuse:
		l.dropIfEmpty(o)
		l.stats.Refused++
		return nil, false
	case Most:
		l.stats.TakenFromMost++
	case Own:
		l.stats.TakenFromOwn++
	case Free:
	}
	lost = l.loses(d, o)
	// c is added first, so that o is not dropped in between when lost is its only claim.
	l.add(o, c)
	if lost != nil {
		l.remove(lost)
	}
	return lost, true
}

func (l *Limit[K, V]) decide(o *owner[K, V]) Decision {
	free, reserved := l.options.Total-l.stats.Held, o.held < o.reserve
	switch {
	case l.options.Keep && reserved:
		return Free
	case l.options.Keep:
		return DecideKept(o.account.Charge(), free-l.kept)
	case reserved && free == 0:
		return Most // Reserve is less than Total, so others hold units
	}
	return Decide(o.account.Charge(), l.order.Most().Charge(), free)
}

// Next returns whose unit the owner key would get from Acquire now, and which claim would be lost, nil for none.
func (l *Limit[K, V]) Next(key K) (Decision, *Claim[K, V]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.owner(key)
	defer l.dropIfEmpty(o)
	d := l.decide(o)
	return d, l.loses(d, o)
}

// loses returns the claim that is lost when o gets the unit which was decided on.
func (l *Limit[K, V]) loses(d Decision, o *owner[K, V]) *Claim[K, V] {
	switch d {
	case Most:
		return l.order.Most().Of.oldest
	case Own:
		return o.oldest
	}
	return nil
}

// Take takes away the claim that an Acquire by key would take if no unit were free, and gives its unit to nobody. It is
// for a caller who finds that there are fewer units than Total. The caller must end the use of the lost claim's unit.
// ok is false when there is no claim to take. Take must not be used on a Limit with Keep.
func (l *Limit[K, V]) Take(key K) (lost *Claim[K, V], ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.order.Len() == 0 {
		return nil, false
	}
	o, charge := l.owners[key], 0
	if o != nil {
		charge = o.account.Charge()
	}
	switch Decide(charge, l.order.Most().Charge(), 0) {
	case Most:
		lost = l.order.Most().Of.oldest
		l.stats.TakenFromMost++
	case Own:
		lost = o.oldest
		l.stats.TakenFromOwn++
	default:
		l.stats.Refused++
		return nil, false
	}
	l.remove(lost)
	return lost, true
}

// Touch records that the unit of c was used just now. It does nothing when c holds no unit.
func (l *Limit[K, V]) Touch(c *Claim[K, V]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := c.owner; o != nil && o.newest != c {
		o.unchain(c)
		o.chain(c)
	}
}

// Release gives back the unit of c. It reports whether c held one; a claim that was lost holds none.
func (l *Limit[K, V]) Release(c *Claim[K, V]) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.owner == nil {
		return false
	}
	l.remove(c)
	return true
}

// Held returns the number of units that an owner holds, reserved ones included.
func (l *Limit[K, V]) Held(key K) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.owners[key]; o != nil {
		return o.held
	}
	return 0
}

// Stats returns the counters and the state.
func (l *Limit[K, V]) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Owners = l.order.Len()
	if s.Owners > 0 {
		s.Most = l.order.Most().Charge()
	}
	return s
}

// owner returns the owner with that key, which is made if it holds nothing yet.
func (l *Limit[K, V]) owner(key K) *owner[K, V] {
	if o := l.owners[key]; o != nil {
		return o
	}
	var o *owner[K, V]
	if n := len(l.spare); n > 0 {
		o, l.spare = l.spare[n-1], l.spare[:n-1]
	} else {
		o = new(owner[K, V])
	}
	*o = owner[K, V]{key: key}
	o.account.Of = o
	if l.options.Reserve > 0 && key == l.options.Own {
		o.reserve = l.options.Reserve
	}
	l.owners[key] = o
	l.order.Add(&o.account)
	return o
}

// dropIfEmpty forgets an owner without claims.
func (l *Limit[K, V]) dropIfEmpty(o *owner[K, V]) {
	if o.held > 0 {
		return
	}
	delete(l.owners, o.key)
	l.order.Remove(&o.account)
	*o = owner[K, V]{}
	l.spare = append(l.spare, o)
}

// add makes c hold a unit of o.
func (l *Limit[K, V]) add(o *owner[K, V], c *Claim[K, V]) {
	c.owner = o
	o.chain(c)
	l.change(o, 1)
}

// remove takes the unit away from c.
func (l *Limit[K, V]) remove(c *Claim[K, V]) {
	o := c.owner
	c.owner = nil
	o.unchain(c)
	l.change(o, -1)
	l.dropIfEmpty(o)
}

// change adds n to the number of units that o holds.
func (l *Limit[K, V]) change(o *owner[K, V], n int) {
	o.held += n
	l.stats.Held += n
	if o.reserve > 0 {
		l.kept = max(0, o.reserve-o.held)
	}
	l.order.Set(&o.account, max(0, o.held-o.reserve))
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
