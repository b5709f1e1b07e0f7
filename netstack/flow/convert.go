package flow

import (
	"unsafe"
)

// Serves reports whether Open would take mem over as it is, for this capacity: because mem belongs to a table of this
// version and capacity, or because it is empty. Otherwise Convert can save the flows in other memory.
func Serves(mem []byte, capacity int) bool {
	if capacity < 1 || len(mem) < Size(capacity) {
		return false
	}
	h := (*header)(unsafe.Pointer(&mem[0]))
	return h.magic.Load() == 0 || h.fits(capacity)
}

// Convert makes a table of mem, which must be empty, with every whole flow of old, the memory of an earlier table of
// any version up to this one and of any capacity. Stats says how many flows those are; Reformatted is set when Convert
// does not know old. Where mem has too little room, the flows that would be evicted last take precedence.
//
// Convert only reads old, so old stays whole until the caller has replaced it. That makes a conversion safe against
// being killed: keep old until mem is kept, and drop old in the same step.
func Convert(old, mem []byte, o Options) (*Table, error) {
	t, err := lay(mem, &o)
	if err != nil {
		return nil, err
	}
	from := openRecords(old, o.Owner)
	if from != nil && o.Seed == 0 {
		o.Seed = from.header().seed.Load() // as secret as a new one
	}
	t.format(mem, o.Seed)
	if t.reformatted = from == nil; from != nil {
		t.convert(from)
	}
	return t, nil
}

// records reads the memory of a table of one version. Anything in it may be torn or nonsense.
type records interface {
	header() *header
	// read copies slot i, which is below the header's used and capacity. whole is false for a slot that must be
	// discarded and for an empty one.
	read(i uint32, h *hasher, r *record) (state State, seen uint32, whole, empty bool)
}

// openRecords finds out what memory holds. It returns nil when that is no table, or one of a later version.
func openRecords(mem []byte, owner func(*Entry) uint64) records {
	if len(mem) < headerSize || uintptr(unsafe.Pointer(&mem[0]))%8 != 0 {
		return nil
	}
	h := (*header)(unsafe.Pointer(&mem[0]))
	capacity := h.capacity.Load()
	if h.magic.Load() != magic || capacity < 1 || capacity > maxSlots {
		return nil
	}
	switch h.version.Load() {
	case 1:
		return openV1(mem, h, int(capacity), owner)
	case 2:
		return openV2(mem, h, int(capacity))
	case version:
		if h.slotSize.Load() == slotSize && len(mem) >= Size(int(capacity)) {
			m := imageOf(mem, int(capacity))
			return &m
		}
	}
	return nil
}

func (m *image) header() *header { return m.head }

func (m *image) read(i uint32, h *hasher, r *record) (state State, seen uint32, whole, empty bool) {
	s := &m.slots[i]
	l := s.loadLive()
	return l.state(), s.seen.Load(), m.whole(i, r, h), s.seq.Load()&3 == 0 && l == 0
}

// convert copies the whole flows of another table. It goes over them twice: flows that are hard to replace come first.
func (t *Table) convert(from records) {
	head := from.header()
	h := newHasher(head.seed.Load())
	used := uint32(min(head.used.Load(), head.capacity.Load()))
	var r record
	for _, easy := range []bool{false, true} {
		for i := range used {
			switch state, seen, whole, empty := from.read(i, &h, &r); {
			case !whole:
				if easy && !empty {
					t.discarded++
				}
			case easy == (cheap[state] >= pressedRank):
				t.copy(&r, state, seen)
			}
		}
	}
	t.len.Store(int64(t.kept))
}

// copy puts a flow of another table into the next slot.
func (t *Table) copy(r *record, state State, seen uint32) {
	i := uint32(t.kept)
	if int(i) == len(t.slots) {
		t.unfit++
		return
	}
	t.use(i)
	orig, reply := r.hashes(&t.hasher)
	t.slots[i].write(&t.ledgers[i], r, r.sum(&t.hasher, orig, reply), state, notAfter(seen, t.now.Load()), 0)
	if !t.adopt(i, r) {
		// The flow was not whole after all: one of its tuples is another flow's, or a key finds no room.
		t.slots[i].retire()
		t.discarded++
		return
	}
	t.kept++
}
