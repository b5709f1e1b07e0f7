package flow

import (
	"unsafe"
)

// Serves reports whether Open takes mem over as it is, for so many flows: it is that of a table of this version and
// capacity, or nothing is in it. Otherwise Convert saves the flows in other memory.
func Serves(mem []byte, capacity int) bool {
	if capacity < 1 || len(mem) < Size(capacity) {
		return false
	}
	h := (*header)(unsafe.Pointer(&mem[0]))
	return h.magic.Load() == 0 || h.fits(capacity)
}

// Convert makes a table of mem, which has nothing in it yet, with every whole flow of old, the memory of an earlier
// table of any version up to this one and of any capacity. Stats tells how many those are, and Reformatted when old
// is none that it knows. Where mem has too little room, flows that would be evicted last are taken first.
//
// Convert only reads old. So old is whole until the caller has put mem in its place, which is what makes a conversion
// safe against being killed: keep old until mem is kept, and let go of it in the same step.
func Convert(old, mem []byte, o Options) (*Table, error) {
	t, err := lay(mem, &o)
	if err != nil {
		return nil, err
	}
	from := openRecords(old, o.Owner)
	if from != nil && o.Seed == 0 {
		o.Seed = from.header().seed.Load() // it is as secret as before
	}
	t.format(mem, o.Seed)
	if t.reformatted = from == nil; from != nil {
		t.convert(from)
	}
	return t, nil
}

// records reads the memory of a table of one version. Everything in it may be torn or nonsense.
type records interface {
	header() *header
	// read copies slot i; there is one for each number below the header's used and capacity. whole is false for what
	// is to be discarded, and for a slot that is empty.
	read(i uint32, h *hasher, r *record) (state State, seen uint32, whole, empty bool)
}

// openRecords finds out what memory holds; nil when it is no table's, or one of a version to come.
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

// convert copies the whole flows of another table. It goes over them twice: first come those that are hard to replace.
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
		// It was not whole after all: one of its tuples is another flow's, or no key finds room.
		t.slots[i].retire()
		t.discarded++
		return
	}
	t.kept++
}
