package flow

import "tapestry.dev/tapestry/netstack/packet"

// SetVia changes Via of the flow that ref names, if its original tuple is still orig. It returns the ref that names the
// flow from then on, and false when the flow is gone. A packet of the flow that comes at the same time finds the flow
// as it was or as it is, or finds none and then fails to insert one. A process that is killed meanwhile loses the flow.
func (t *Table) SetVia(r uint32, orig *packet.Tuple, via uint64) (uint32, bool) {
	s, seq := t.deref(r)
	if s == nil {
		return 0, false
	}
	i := r & (maxSlots - 1)
	var rec record
	if !s.load(&rec, seq) || rec.tuple[Original] != *orig {
		return 0, false
	}
	ho, hr := rec.hashes(&t.hasher)
	t.lock(ho, hr)
	defer t.unlock(ho, hr)
	if s.seq.Load() != seq || !t.load(i, &rec, seq) {
		return 0, false
	}
	rec.via = via
	checked, seen := s.loadLive().checked(), s.seen.Load()
	s.write(&t.ledgers[i], &rec, rec.sum(&t.hasher, ho, hr), s.retire(), seen, checked)
	return ref(i, s.seq.Load()), true
}
