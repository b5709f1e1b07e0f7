package flow

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Dir is the direction of a packet within its flow.
type Dir uint8

// The directions.
const (
	Original Dir = iota // from the side that opened the flow
	Reply
)

// Entry is one flow, as it is inserted and shown.
type Entry struct {
	// Orig is the tuple of the first packet as it arrived. Reply is that of the packets that answer it, as they
	// arrive, before translation; without translation Reply is Orig.Reverse(). Both have one Proto; zones may differ.
	Orig, Reply packet.Tuple
	// Backend is the stable identity of the chosen backend, 0 for none.
	Backend uint64
	// Via, when not 0, names the peer or port to which answers go instead of by route. It means nothing here.
	Via uint64
	// Kind is the caller's and means nothing here.
	Kind uint8
	// TCPFlags are those of the first packet. Range does not fill it.
	TCPFlags uint8
	// Checked is the generation of the caller's table in which Backend was found valid last, 0 for never. It does not
	// survive the process.
	Checked uint32
}

// Hit is what Lookup found.
type Hit struct {
	// Ref names the flow for SetChecked and Delete, until the flow is gone.
	Ref uint32
	Dir Dir
	// Translate is set when the addresses or ports of To differ from those of the packet.
	Translate bool
	Kind      uint8
	State     State
	Checked   uint32
	Backend   uint64
	Via       uint64
	// To is what the packet's tuple becomes: Reply.Reverse() for Original, Orig.Reverse() for Reply. Its zone is that of
	// the tuple it comes from, and no part of Translate.
	To packet.Tuple
}

// Options are the choices for Open. The zero value serves.
type Options struct {
	// Capacity is the largest number of flows, at most 1<<24; 0 is as many as the memory holds.
	Capacity int
	// Clock gives seconds of a clock that goes on across processes; nil is BootClock.
	Clock func() uint32
	// Seed is the secret of the hash for newly formatted memory; 0 is a random one.
	Seed uint64
}

// Stats are counters since Open, and the size now.
type Stats struct {
	Len, Capacity int
	// Kept and Discarded count what Open found: whole entries, and torn ones which it dropped.
	Kept, Discarded int
	// Reformatted: the memory was of another version, layout or capacity (or none of ours), and its flows are lost.
	Reformatted bool
	// Expired flows were freed by Sweep in time, Evicted ones before their time because the table was full or nearly.
	Expired, Evicted uint64
	// Full and NoPort count failed inserts.
	Full, NoPort uint64
}

// Table is the flow table. Its methods are safe for concurrent use.
type Table struct {
	hasher
	index []bucket
	slots []slot
	head  *header
	clock func() uint32
	_     [64]byte // keeps the words below, which are written, out of the line that every lookup reads

	now  atomic.Uint32 // of clock, at the last Sweep
	used atomic.Uint32 // mirrors head.used
	_    [64]byte

	stripe [stripes]struct {
		sync.Mutex
		_ [56]byte
	}

	freeMu   sync.Mutex
	freeHead uint32 // first free slot + 1; the others hang on it by next

	sweepMu sync.Mutex
	cursor  uint32
	hand    atomic.Uint32 // where eviction looks next

	len                            atomic.Int64
	expired, evicted, full, noPort atomic.Uint64
	kept, discarded                int
	reformatted                    bool
}

// Size is the number of bytes of memory that a table of capacity flows needs. About 16 more for each flow are private
// to the process.
func Size(capacity int) int { return headerSize + capacity*slotSize }

// BootClock gives seconds of CLOCK_BOOTTIME, which all processes share and which goes on while the machine sleeps.
func BootClock() uint32 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux since 2.6.39 has it
	}
	return uint32(ts.Sec)
}

// Open makes a table of mem, which must stay mapped as long as the table is used and belongs to the table alone.
// Zeroed memory is formatted; memory of an earlier table is attached to with its flows; anything else is formatted
// anew, which Stats tells.
func Open(mem []byte, o Options) (*Table, error) {
	if o.Capacity == 0 {
		o.Capacity = max(0, min((len(mem)-headerSize)/slotSize, maxSlots))
	}
	if o.Capacity < 1 || o.Capacity > maxSlots {
		return nil, fmt.Errorf("open flow table: capacity %d is not within 1..%d", o.Capacity, maxSlots)
	}
	if len(mem) < Size(o.Capacity) {
		return nil, fmt.Errorf("open flow table: %d flows need %d bytes of memory, got %d", o.Capacity, Size(o.Capacity), len(mem))
	}
	if uintptr(unsafe.Pointer(&mem[0]))%8 != 0 {
		return nil, errors.New("open flow table: memory is not aligned to 8 bytes")
	}
	if o.Clock == nil {
		o.Clock = BootClock
	}
	t := &Table{
		head:  (*header)(unsafe.Pointer(&mem[0])),
		slots: unsafe.Slice((*slot)(unsafe.Pointer(&mem[headerSize])), o.Capacity),
		index: make([]bucket, indexLen(o.Capacity)),
		clock: o.Clock,
	}
	t.now.Store(o.Clock())
	if t.head.fits(o.Capacity) {
		t.attach()
	} else {
		t.format(mem, o.Seed)
	}
	return t, nil
}

func (h *header) fits(capacity int) bool {
	return h.magic.Load() == magic && h.version.Load() == version && h.slotSize.Load() == slotSize &&
		h.capacity.Load() == uint64(capacity)
}

func (t *Table) format(mem []byte, seed uint64) {
	h := t.head
	if h.magic.Load() != 0 {
		// Should we die in the middle, the next process formats again.
		h.magic.Store(^uint64(0))
		clear(mem[headerSize:Size(len(t.slots))])
		t.reformatted = true
	}
	for seed == 0 {
		seed = rand.Uint64()
	}
	t.hasher = newHasher(seed)
	h.version.Store(version)
	h.slotSize.Store(slotSize)
	h.capacity.Store(uint64(len(t.slots)))
	h.seed.Store(seed)
	h.used.Store(0)
	h.magic.Store(magic)
}

// attach takes over what an earlier process left, and trusts none of it before it was looked at.
func (t *Table) attach() {
	t.hasher = newHasher(t.head.seed.Load())
	used := uint32(min(t.head.used.Load(), uint64(len(t.slots))))
	t.used.Store(used)
	now := t.now.Load()
	var m image
	for i := range used {
		s := &t.slots[i]
		if s.whole(&m, &t.hasher) && t.adopt(i, &m) {
			s.live.Store(uint64(makeLive(s.seq.Load(), s.loadLive().state(), 0)))
			if idle(now, s.seen.Load()) == 0 {
				s.seen.Store(now) // not in the future
			}
			t.kept++
			continue
		}
		if s.seq.Load()&3 != 0 || s.live.Load() != 0 {
			t.discarded++
		}
		s.live.Store(0)
		s.seq.Store((s.seq.Load() + 3) &^ 3)
		t.push(i)
	}
	t.len.Store(int64(t.kept))
}

// adopt indexes a slot that was found whole, unless one of its keys is there already.
func (t *Table) adopt(i uint32, m *image) bool {
	ho, hr := t.hash(&m.tuple[Original]), t.hash(&m.tuple[Reply])
	if _, taken := t.find(&m.tuple[Original], ho); taken {
		return false
	}
	if _, taken := t.find(&m.tuple[Reply], hr); taken {
		return false
	}
	return t.linkBoth(i, m, ho, hr)
}

// Stats tells the size and the counters.
func (t *Table) Stats() Stats {
	return Stats{
		Len: int(t.len.Load()), Capacity: len(t.slots),
		Kept: t.kept, Discarded: t.discarded, Reformatted: t.reformatted,
		Expired: t.expired.Load(), Evicted: t.evicted.Load(), Full: t.full.Load(), NoPort: t.noPort.Load(),
	}
}

// pop takes a free slot.
func (t *Table) pop() (i uint32, ok bool) {
	t.freeMu.Lock()
	defer t.freeMu.Unlock()
	if t.freeHead != 0 {
		i = t.freeHead - 1
		t.freeHead = t.slots[i].next.Load()
		t.len.Add(1)
		return i, true
	}
	i = t.used.Load()
	if int(i) == len(t.slots) {
		return 0, false
	}
	t.head.used.Store(uint64(i + 1))
	t.used.Store(i + 1)
	t.len.Add(1)
	return i, true
}

// push gives a slot back; the caller counts it.
func (t *Table) push(i uint32) {
	t.freeMu.Lock()
	t.slots[i].next.Store(t.freeHead)
	t.freeHead = i + 1
	t.freeMu.Unlock()
}

// release gives a slot back that pop gave.
func (t *Table) release(i uint32) {
	t.push(i)
	t.len.Add(-1)
}
