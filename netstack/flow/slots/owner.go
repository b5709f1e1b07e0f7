package slots

import (
	"slices"

	"tapestry.dev/tapestry/share"
)

// owner is somebody who has a slot at least.
type owner struct {
	account share.Account[*owner]
	id      uint64
	number  uint32 // its place in Slots.owners
	held    int
	reserve int // slots that are not charged
	lists   [2]list
}

// An owner's lists.
const (
	settling = iota // slots that may go
	settled         // slots that were worth keeping when they were looked at
)

// list has slots in any order.
type list []uint32

// muchRoom is the capacity from which on a list is given back once it is empty.
const muchRoom = 1 << 12

// link says whose a slot is.
type link struct {
	at     uint32 // its place in the list; of a free slot, the next free one plus 1
	owner  uint32 // number of the owner plus 1; 0 for a free slot
	client Client
	which  uint8 // of its owner's lists
}

// owner gives the owner of that id, which is made if it has no slot yet.
func (s *Slots) owner(id uint64) *owner {
	if o := s.byID[id]; o != nil {
		return o
	}
	var o *owner
	if n := len(s.spare); n > 0 {
		o, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		o = &owner{number: uint32(len(s.owners))}
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
func (s *Slots) put(o *owner, which uint8, slot uint32) {
	l := &o.lists[which]
	s.links[slot].which, s.links[slot].at = which, uint32(len(*l))
	*l = append(*l, slot)
}

// take takes a slot out of its owner's list.
func (s *Slots) take(o *owner, slot uint32) {
	l, at := &o.lists[s.links[slot].which], s.links[slot].at
	last := len(*l) - 1
	moved := (*l)[last]
	(*l)[at], s.links[moved].at = moved, at
	*l = (*l)[:last]
}
