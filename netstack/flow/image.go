package flow

import (
	"sync/atomic"
	"unsafe"
)

const (
	slotSize   = 128
	ledgerSize = 64
	headerSize = 4096 // a page, so that slots are aligned to cache lines
	maxSlots   = 1 << refBits
	refBits    = 24
	magic      = 0x776f6c66_70617431 // "1tapflow"
	version    = 3
)

// header is the start of the shared memory. Its words mean the same in every version, and no word ever moves.
type header struct {
	magic    atomic.Uint64 // written last
	version  atomic.Uint32
	slotSize atomic.Uint32
	capacity atomic.Uint64
	seed     atomic.Uint64
	used     atomic.Uint64 // slots from this number on were never written
}

// Size returns the number of bytes of memory that a table of capacity flows needs. The process needs about 30 more
// bytes of private memory for each flow.
func Size(capacity int) int { return headerSize + capacity*(slotSize+ledgerSize) }

// capacityOf returns the number of flows that fit into size bytes.
func capacityOf(size int) int { return max(0, min((size-headerSize)/(slotSize+ledgerSize), maxSlots)) }

// image is a table's memory; the documentation of the package describes it.
type image struct {
	head    *header
	slots   []slot
	ledgers []ledger // one for each slot
}

// imageOf makes an image over memory, which must be large enough.
func imageOf(mem []byte, capacity int) image {
	return image{
		head:    (*header)(unsafe.Pointer(&mem[0])),
		slots:   unsafe.Slice((*slot)(unsafe.Pointer(&mem[headerSize])), capacity),
		ledgers: unsafe.Slice((*ledger)(unsafe.Pointer(&mem[headerSize+capacity*slotSize])), capacity),
	}
}

// fits reports whether the memory belongs to a table of this version and capacity.
func (h *header) fits(capacity int) bool {
	return h.magic.Load() == magic && h.version.Load() == version && h.slotSize.Load() == slotSize &&
		h.capacity.Load() == uint64(capacity)
}

// ledger holds the part of a flow that most packets do not need. Its constant words go into the sum. Its words are
// written without sync/atomic, whose stores cost as much as the rest of an insert; the sequence number of the slot,
// which is odd meanwhile, orders them. A reader believes what it read only when it has seen that number stay the same.
type ledger struct {
	sum, created   uint32 // created: seconds of the boot-time clock
	owner, cluster uint64
	// policy is not constant: version << 32 | low bits of the slot's sequence number << 8. So it can be exchanged in
	// the same way as the live word.
	policy         uint64
	bytes, packets [2]uint64 // by Dir, moved here from the slot; see spill
}

// write fills the ledger of a slot that is being filled under the sequence number seq.
//
//go:norace
func (l *ledger) write(r *record, sum, seq uint32) {
	l.sum, l.created = sum, r.created
	l.owner, l.cluster = r.owner, r.cluster
	l.policy = uint64(makeLive(seq, 0, r.policy))
}

// load copies the ledger, and returns its sum.
//
//go:norace
func (l *ledger) load(r *record) (sum uint32) {
	r.created, r.owner, r.cluster = l.created, l.owner, l.cluster
	r.policy = live(l.policy).checked()
	return l.sum
}

// load copies slot i with its ledger, in the same way as slot.load.
func (m *image) load(i uint32, r *record, seq uint32) bool {
	s, l := &m.slots[i], &m.ledgers[i]
	if !s.load(r, seq) {
		return false
	}
	l.load(r)
	r.counts, r.marks = s.countsWith(l), s.marks.load()
	return s.seq.Load() == seq
}

// whole reports whether a slot that another process left is whole, and copies it.
func (m *image) whole(i uint32, r *record, h *hasher) bool {
	s := &m.slots[i]
	seq, l := s.seq.Load(), s.loadLive()
	if !m.load(i, r, seq) || !l.of(seq) || l.state() == free || l.state() >= Closed {
		return false
	}
	orig, reply := r.hashes(h)
	return r.sum(h, orig, reply) == m.ledgers[i].load(r)
}
