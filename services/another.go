package services

import (
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
)

// Another chooses another backend for a connection that Pick had led to the backends in refused, which refused it one
// after the other. Its Kind is not Picked if there is no other. What the hash chooses is what it would choose without
// the refused backends, as it will when they have left. A session stays where it is: it moves when its backend leaves
// the Service. tuple and refused are borrowed.
func (t *Table) Another(tuple *packet.Tuple, refused []uint64) packet.Choice {
	return t.another(t.at(tuple).front, tuple, refused)
}

// AnotherOnHost is Another for what PickOnHost chose.
func (t *Table) AnotherOnHost(tuple *packet.Tuple, refused []uint64) packet.Choice {
	return t.another(t.atOnHost(tuple).front, tuple, refused)
}

func (t *Table) another(f *front, tuple *packet.Tuple, refused []uint64) packet.Choice {
	if f == nil || f.service == noService {
		return packet.Choice{} // a hostPort leads to one pod
	}
	if t.excludes(f, tuple) {
		return packet.Choice{} // the Service's SourceRanges have changed since Pick
	}
	s, _ := t.setOf(f, tuple)
	h := flowHash(tuple)
	if f.affinity {
		h = sessionHash(&tuple.Src, 0)
	}
	b := s.another(h, refused)
	if b == nil {
		return packet.Choice{}
	}
	return packet.Choice{Kind: packet.Picked, Backend: b.id, To: b.to, Counted: t.units.At(int(f.service)).held != nil}
}

// pickTries is how often a Picker, or the table of a large set, is asked until every backend is looked at.
const pickTries = 8

// another returns a backend that is not among the refused; nil if there is none.
func (s *set) another(h uint64, refused []uint64) *backend {
	bs := s.backends
	if s.picker == nil && len(s.slots) == 0 && s.tree == nil {
		return s.heaviest(h, refused)
	}
	for i := range uint64(pickTries) {
		b := (*backend)(nil)
		if s.picker != nil {
			b = &bs[s.picker.Pick()]
		} else {
			b = s.winner(h + i*mixD)
		}
		if !slices.Contains(refused, b.id) {
			return b
		}
	}
	return s.heaviest(h, refused)
}

// heaviest is rendezvous hashing among the backends that are not among the refused.
func (s *set) heaviest(h uint64, refused []uint64) (best *backend) {
	most := uint64(0)
	for i := range s.size() {
		b := s.at(i)
		if w := score(h, b.id); (best == nil || w > most) && !slices.Contains(refused, b.id) {
			best, most = b, w
		}
	}
	return best
}
