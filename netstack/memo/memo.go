// Package memo keeps a few words for each of many things in memory that outlives the process, such as a memfd that the
// keeper holds. The next process reads what the one before has written, whatever instant that was killed at.
//
// # Layout
//
// The memory holds no pointer and no lock. After a header (magic, version, the number of slots) come slots of 128
// bytes, each two cache lines. A slot has constant words, which say what it is about, with a sum over them, and live
// words, each of which changes by itself in one store. A slot without a sum is vacant. Put clears the sum, writes the
// words and then the sum. So a process that is killed in between leaves a slot that is vacant or whose sum is wrong,
// and Get reports neither.
//
// # Who may write
//
// Only one process writes at a time; the keeper's lease ensures that. Whoever may connect to the keeper may write the
// memory, as that of the flow table. Get therefore checks nothing but the sum: its caller must bear any words.
package memo

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"
)

const (
	magic   = 0x7461_7065_6d65_6d6f // "tapememo"
	version = 1
	// headerSize is the size of the header in bytes, most of which is for later versions and zero.
	headerSize = 4096
	slotSize   = 128

	// Words is the number of constant words of a slot, and Live that of live words.
	Words = 9
	Live  = 6
)

// Fixed are the constant words of a slot. Their meaning is the caller's.
type Fixed [Words]uint64

type header struct {
	magic   atomic.Uint64
	version atomic.Uint32
	slots   atomic.Uint32
	kind    atomic.Uint64
}

// slot is what the memory holds for one thing.
type slot struct {
	sum   atomic.Uint64 // 0: vacant
	fixed [Words]atomic.Uint64
	live  [Live]atomic.Uint64
}

var _ [slotSize]byte = [unsafe.Sizeof(slot{})]byte{}

// Memo is such memory. Its methods may be called concurrently for different slots. A slot that is out of range is a
// mistake of the caller, and panics.
type Memo struct {
	slots []slot
}

// Size returns how many bytes of memory so many slots take.
func Size(slots int) int { return headerSize + slots*slotSize }

// ErrForeign says that memory is of another kind or a version that this program does not know.
var ErrForeign = errors.New("the memory is not of a kind that this program knows")

// Open returns the Memo in mem, which must be aligned to 8 bytes. kind tells what the words mean, and changes whenever
// that does. Memory that is all zero is made ready, with as many slots as fit. Memory of another kind or version is
// ErrForeign, and stays as it is.
func Open(mem []byte, kind uint64) (*Memo, error) {
	most := (len(mem) - headerSize) / slotSize
	if most < 1 {
		return nil, fmt.Errorf("%d bytes of memory have no room for a slot", len(mem))
	}
	h := (*header)(unsafe.Pointer(&mem[0]))
	if h.magic.Load() == 0 {
		h.slots.Store(uint32(most))
		h.version.Store(version)
		h.kind.Store(kind)
		h.magic.Store(magic) // last, so that a process that is killed leaves memory that is not ready
	}
	n := int(h.slots.Load())
	if h.magic.Load() != magic || h.version.Load() != version || h.kind.Load() != kind || n < 1 || n > most {
		return nil, ErrForeign
	}
	return &Memo{unsafe.Slice((*slot)(unsafe.Pointer(&mem[headerSize])), n)}, nil
}

// Len returns the number of slots.
func (m *Memo) Len() int { return len(m.slots) }

// Put writes a slot: the constant words and the live ones.
func (m *Memo) Put(i uint32, f *Fixed, live *[Live]uint64) {
	s := &m.slots[i]
	s.sum.Store(0)
	for j := range f {
		s.fixed[j].Store(f[j])
	}
	for j := range live {
		s.live[j].Store(live[j])
	}
	s.sum.Store(sum(f))
}

// Get returns the words of a slot, and false when it is vacant or was not written to its end.
func (m *Memo) Get(i uint32) (f Fixed, live [Live]uint64, ok bool) {
	s := &m.slots[i]
	for j := range f {
		f[j] = s.fixed[j].Load()
	}
	for j := range live {
		live[j] = s.live[j].Load()
	}
	return f, live, s.sum.Load() == sum(&f)
}

// Set changes one live word of a slot.
func (m *Memo) Set(i uint32, word int, v uint64) { m.slots[i].live[word].Store(v) }

// Clear makes a slot vacant.
func (m *Memo) Clear(i uint32) { m.slots[i].sum.Store(0) }

// Used calls f for every slot that is not vacant, whole or not.
func (m *Memo) Used(f func(i uint32)) {
	for i := range m.slots {
		if m.slots[i].sum.Load() != 0 {
			f(uint32(i))
		}
	}
}

// sum is never 0. It detects slots that were written in part; it is no secret.
func sum(f *Fixed) uint64 {
	h := uint64(magic)
	for _, w := range f {
		hi, lo := bits.Mul64(h^w, 0x9e37_79b9_7f4a_7c15)
		h = hi ^ bits.RotateLeft64(lo, 29)
	}
	return max(h, 1)
}
