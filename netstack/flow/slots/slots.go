// Package slots assigns the numbers of a table's slots to owners, fairly.
//
// Each slot in use is charged to the owner who began its flow. When no slot is free, the rule of package share says
// whose slot goes. The table chooses among a few slots of that owner which are taken at random, so the result of a
// search depends neither on their number nor on the order in which they came. Slots that the table would rather keep
// are settled: they are offered again only when their owner has no others left.
//
// An owner may stand for many clients. So slots are also counted for each client, approximately: several clients may
// share a counter by chance.
//
// Nothing here is shared with other processes. Assigning or releasing a slot takes one mutex. A packet of a known flow
// needs nothing of this package.
package slots

import (
	"math/bits"
	"math/rand/v2"
	"sync"

	"tapestry.dev/tapestry/share"
)

// Slots knows which slots are free, and who has the others. Its methods are safe for concurrent use.
type Slots struct {
	own     []uint64
	reserve int

	mu     sync.Mutex             // guards the fields below
	counts [1 << clientBits]int32 // number of slots by client
	random rand.PCG
	links  []link // by slot
	free   uint32 // the first free slot, plus 1; link.at leads to the next
	fresh  uint32 // slots from here on were never assigned
	inUse  int
	owners []*owner // by number
	byID   map[uint64]*owner
	order  share.Ranking[*owner]
	spare  []*owner // owners without slots, for reuse
}

// Client names a client of an owner by some bits of a hash, which nobody can choose.
type Client uint16

const clientBits = 14

// ClientOf returns the client with this hash.
func ClientOf(hash uint64) Client { return Client(hash >> (64 - clientBits)) }

// New makes Slots for a capacity, all of them free. Each of the owners in own has a reserve of so many slots, which it
// gets even when others are using them. All reserves together must be less than the capacity.
func New(capacity, reserve int, own ...uint64) *Slots {
	return &Slots{
		own: own, reserve: reserve, links: make([]link, capacity), byID: map[uint64]*owner{},
		random: *rand.NewPCG(rand.Uint64(), rand.Uint64()),
	}
}

// Candidates are slots of one owner, one of which should go.
type Candidates struct {
	n    int
	id   uint64 // their owner
	list [16]uint32
	many [16]int32
	keep [16]bool
	last bool
}

// List returns the candidates. They may have been released since.
func (c *Candidates) List() []uint32 { return c.list[:c.n] }

// Many returns approximately how many slots the client has whose candidate has that number in List.
func (c *Candidates) Many(number int) int { return int(c.many[number]) }

// Last reports whether the candidates' owner has only slots left that were worth keeping.
func (c *Candidates) Last() bool { return c.last }

// Still reports whether the candidates' owner still has the slot, which another search may have moved.
func (s *Slots) Still(slot uint32, c *Candidates) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.links[slot].owner
	return n != 0 && s.owners[n-1].id == c.id
}

// Keep records that the candidate with that number in List is worth keeping.
func (c *Candidates) Keep(number int) { c.keep[number] = true }

// Take gets a slot for an owner, for a client. When none is free, the decision says whose should go, and c lists some
// of those. The caller then moves one to the owner, or calls Keep for those that it would rather keep, and tries again
// with the same c. Or it gives up, as it must when the decision is share.Refuse. c must be the zero value at first.
func (s *Slots) Take(id uint64, client Client, c *Candidates) (slot uint32, from share.Decision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(c)
	o := s.owner(id)
	switch from = s.decide(o); from {
	case share.Free:
		slot = s.pop()
		s.give(o, client, slot)
	case share.Most:
		s.nominate(s.order.Most().Of, c)
	case share.Own:
		s.nominate(o, c)
	case share.Refuse:
	}
	s.dropIfEmpty(o)
	return slot, from
}

func (s *Slots) decide(o *owner) share.Decision {
	free := len(s.links) - s.inUse
	if free == 0 && o.held < o.reserve {
		return share.Most
	}
	return share.Decide(o.account.Charge(), s.order.Most().Charge(), free)
}

// nominate chooses some slots of an owner at random, perhaps one of them more than once.
func (s *Slots) nominate(o *owner, c *Candidates) {
	l := o.lists[settling]
	if c.last = len(l) == 0; c.last {
		l = o.lists[settled]
	}
	c.n, c.id = min(len(c.list), len(l)), o.id
	for i := range c.n {
		at, _ := bits.Mul64(s.random.Uint64(), uint64(len(l)))
		c.list[i], c.many[i] = l[at], s.counts[s.links[l[at]].of()]
	}
}

// settle puts aside the candidates that were worth keeping.
func (s *Slots) settle(c *Candidates) {
	for number, slot := range c.List() {
		if l := &s.links[slot]; c.keep[number] && l.owner != 0 && l.in() == settling {
			o := s.owners[l.owner-1]
			s.take(o, slot)
			s.put(o, settled, slot)
		}
	}
	if c.n > 0 {
		*c = Candidates{}
	}
}

// Adopt records that a slot is in use already. All slots that are adopted or left out come in ascending order, before
// the first Take.
func (s *Slots) Adopt(slot uint32, id uint64, client Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh = max(s.fresh, slot+1)
	s.give(s.owner(id), client, slot)
}

// LeaveOut records that a slot is free although later ones may be in use.
func (s *Slots) LeaveOut(slot uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh = max(s.fresh, slot+1)
	s.push(slot)
}

// Release takes a slot back.
func (s *Slots) Release(slot uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.withdraw(slot)
	s.push(slot)
}

// Move ends a search with success: it charges one of the candidates to the owner and client. Nobody else can get the
// slot in between.
func (s *Slots) Move(slot uint32, id uint64, client Client, c *Candidates) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(c)
	s.withdraw(slot)
	s.give(s.owner(id), client, slot)
}

// Charge returns how many slots the owner of a slot is charged for; 0 for a free slot.
func (s *Slots) Charge(slot uint32) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.links[slot].owner; n != 0 {
		return s.owners[n-1].account.Charge()
	}
	return 0
}

// Of returns how many slots the owner of a slot is charged for, and approximately how many the client has whose slot it
// is; 0 and 0 for a free slot.
func (s *Slots) Of(slot uint32) (charge, many int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.links[slot]
	if l.owner == 0 {
		return 0, 0
	}
	return s.owners[l.owner-1].account.Charge(), int(s.counts[l.of()])
}

// Charged returns how many slots an owner is charged for.
func (s *Slots) Charged(id uint64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.known(id); o != nil {
		return o.account.Charge()
	}
	return 0
}

// Fair returns the number of slots that each owner would have if all slots were divided evenly among the present
// owners.
func (s *Slots) Fair() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.links) / max(1, s.order.Len())
}

// Stats returns how many owners have slots, and how many slots the one with the most is charged for.
func (s *Slots) Stats() (owners, most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if owners = s.order.Len(); owners > 0 {
		most = s.order.Most().Charge()
	}
	return owners, most
}

// pop returns a free slot. The caller has checked that there is one.
func (s *Slots) pop() uint32 {
	if s.free == 0 {
		s.fresh++
		return s.fresh - 1
	}
	slot := s.free - 1
	s.free = s.links[slot].at
	return slot
}

func (s *Slots) push(slot uint32) {
	s.links[slot] = link{at: s.free}
	s.free = slot + 1
}

// withdraw takes a slot away from its owner. The caller says whose it is now.
func (s *Slots) withdraw(slot uint32) {
	l := &s.links[slot]
	o := s.owners[l.owner-1]
	s.take(o, slot)
	s.counts[l.of()]--
	s.charge(o, -1)
	s.dropIfEmpty(o)
}

// give charges a slot to o.
func (s *Slots) give(o *owner, client Client, slot uint32) {
	s.links[slot] = link{owner: o.number + 1, client: client}
	s.counts[client]++
	s.put(o, settling, slot)
	s.charge(o, 1)
}

func (s *Slots) charge(o *owner, n int) {
	o.held += n
	s.inUse += n
	s.order.Set(&o.account, max(0, o.held-o.reserve))
}
