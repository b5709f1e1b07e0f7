package slots

import (
	"slices"

	"tapestry.dev/tapestry/share"
)

// owner is somebody who has at least one slot.
type owner struct {
	account share.Account[*owner]
	id      uint64
	number  uint16 // its place in Slots.owners
	held    int
	reserve int // slots that are not charged
	lists   [2]list
}

// An owner's lists.
const (
	settling = iota // slots that may go
	settled         // slots that were worth keeping when they were looked at
)

// list holds slots in any order.
type list []uint32

// muchRoom is the capacity above which the memory of an empty list is given back.
const muchRoom = 1 << 12

// link says who has a slot.
type link struct {
	at     uint32 // index in the owner's list; for a free slot, the next free one plus 1
	owner  uint16 // number of the owner plus 1; 0 for a free slot
	client Client // with settledBit when the slot is in the settled list
}

// settledBit is the bit that a Client does not use.
const settledBit = 1 << 15

// in returns which of the owner's lists has the slot.
func (l *link) in() int { return int(l.client >> 15) }

// of returns the client that has the slot.
func (l *link) of() Client { return l.client &^ settledBit }

// maxOwners is how many owners are told apart. All further ones count as one owner. No node has nearly as many pods and
// peers.
const (
	maxOwners = 1<<16 - 2
	theRest   = ^uint64(0)
)

// owner returns the owner with that id, which is made if it has no slot yet.
func (s *Slots) owner(id uint64) *owner {
	if o := s.known(id); o != nil {
		return o
	}
	if s.crowded() {
		id = theRest
	}
	var o *owner
	if n := len(s.spare); n > 0 {
		o, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		o = &owner{number: uint16(len(s.owners))}
		s.owners = append(s.owners, o)
	}
	*o = owner{id: id, number: o.number, lists: o.lists}
	o.account.Of = o
	if slices.Contains(s.own, id) {
		o.reserve = s.reserve
	}
	s.byID[id] = o
	s.order.Add(&o.account)
	return o
}

// known returns the owner with that id, nil when it has no slot.
func (s *Slots) known(id uint64) *owner {
	if o := s.byID[id]; o != nil || !s.crowded() {
		return o
	}
	return s.byID[theRest]
}

// crowded reports whether no more owners can be told apart.
func (s *Slots) crowded() bool { return len(s.spare) == 0 && len(s.owners) >= maxOwners }

// dropIfEmpty forgets an owner without slots.
func (s *Slots) dropIfEmpty(o *owner) {
	if o.held > 0 {
		return
	}
	delete(s.byID, o.id)
	s.order.Remove(&o.account)
	for i := range o.lists {
		if cap(o.lists[i]) > muchRoom {
			o.lists[i] = nil
		}
	}
	s.spare = append(s.spare, o)
}

// put adds a slot to its owner's list.
func (s *Slots) put(o *owner, which int, slot uint32) {
	l, k := &o.lists[which], &s.links[slot]
	k.at, k.client = uint32(len(*l)), k.of()|Client(which<<15)
	*l = append(*l, slot)
}

// take removes a slot from its owner's list.
func (s *Slots) take(o *owner, slot uint32) {
	l, at := &o.lists[s.links[slot].in()], s.links[slot].at
	last := len(*l) - 1
	moved := (*l)[last]
	(*l)[at], s.links[moved].at = moved, at
	*l = (*l)[:last]
}
