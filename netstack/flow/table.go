package flow

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/flow/slots"
	"tapestry.dev/tapestry/netstack/packet"
)

// Dir is the direction of a packet within its flow.
type Dir uint8

// The directions.
const (
	Original Dir = iota // from the side that opened the flow
	Reply
)

// Owners that have a reserve of a thirty-second of the capacity each, which they get whoever has it. Others are
// numbers that nobody can choose for himself, and practically never this small.
const (
	OwnerNode    uint64 = 1 // the node itself: its processes, probes, DNS, Ingress
	OwnerOutside uint64 = 2 // all clients outside of the cluster who come by this node's sockets
)

// Entry is one flow, as it is inserted and shown.
type Entry struct {
	// Orig is the tuple of the first packet as it arrived. Reply is that of the packets that answer it, as they
	// arrive, before translation; without translation Reply is Orig.Reverse(). Both have one Proto; spaces may differ.
	Orig, Reply packet.Tuple
	// Backend is the stable identity of the chosen backend, 0 for none.
	Backend uint64
	// Via, when not 0, names the peer or port to which answers go instead of by route. It means nothing here.
	Via uint64
	// Kind is the caller's and means nothing here.
	Kind uint8
	// Owner is who began the flow: a stable number, 0 where it is not known. When the table is full, owners with few
	// flows get room from the one who has the most; see package share.
	Owner uint64
	// Cluster is the stable identity of the cluster to which Backend belongs, 0 for the node's own. It means nothing
	// here.
	Cluster uint64
	// Policy is the version of the rules by which the caller let the flow be, 0 for none. It means nothing here.
	Policy uint32
	// Counts are by Dir. Insert begins with them.
	Counts [2]Count
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
	// To is what the packet's tuple becomes: Reply.Reverse() for Original, Orig.Reverse() for Reply. Its space is that
	// of the tuple it comes from, and no part of Translate.
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
	// Owner says who began a flow that Convert finds in memory which does not say. nil: it is not known.
	Owner func(*Entry) uint64
}

// Stats are counters since Open, and the size now.
type Stats struct {
	Len, Capacity int
	// Owners have flows in the table; Most is the number of flows of the one who has the most.
	Owners, Most int
	// Kept and Discarded count what Open or Convert found: whole entries, and torn ones which it dropped. Unfit is
	// how many whole ones Convert had no room for.
	Kept, Discarded, Unfit int
	// Reformatted: the memory was of another version, layout or capacity (or none of ours), and its flows are lost.
	Reformatted bool
	// Expired flows were freed in time. Those in Evicted were freed before their time.
	Expired uint64
	Evicted Evicted
	// Full and NoPort count failed inserts.
	Full, NoPort uint64
}

// Evicted counts flows that ended before their time, by what for.
type Evicted struct {
	// Pressed were idle, of an owner with more than an equal share while the table was nearly full.
	Pressed uint64
	// FromMost made room for somebody else's, and were of the owner who had the most.
	FromMost uint64
	// FromOwn made room for one of their own owner's.
	FromOwn uint64
	// Crowded were in the way in the index.
	Crowded uint64
}

// Table is the flow table. Its methods are safe for concurrent use.
type Table struct {
	hasher
	index []bucket
	image
	clock func() uint32
	_     [64]byte // keeps the words below, which are written, out of the line that every lookup reads

	now  atomic.Uint32 // of clock, at the last Sweep
	used atomic.Uint32 // mirrors head.used
	len  atomic.Int64
	_    [64]byte

	stripe [stripes]struct {
		sync.Mutex
		_ [56]byte
	}

	owned *slots.Slots
	ended func(Entry, Info) // nil: nobody is told

	sweepMu sync.Mutex
	cursor  uint32

	expired, full, noPort               atomic.Uint64
	pressed, fromMost, fromOwn, crowded atomic.Uint64
	kept, discarded, unfit              int
	reformatted                         bool
}

// BootClock gives seconds of CLOCK_BOOTTIME, which all processes share and which goes on while the machine sleeps.
func BootClock() uint32 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux since 2.6.39 has it
	}
	return uint32(ts.Sec)
}

// Open makes a table of mem, which must stay mapped as long as the table is used and belongs to the table alone.
// Zeroed memory is formatted; memory of an earlier table of this version and capacity is attached to with its flows;
// anything else is formatted anew, which Stats tells. Where Serves says no, Convert saves the flows.
func Open(mem []byte, o Options) (*Table, error) {
	t, err := lay(mem, &o)
	if err != nil {
		return nil, err
	}
	if t.head.fits(len(t.slots)) {
		t.attach()
	} else {
		t.format(mem, o.Seed)
	}
	return t, nil
}

// lay makes a table over memory whose content was not looked at yet.
func lay(mem []byte, o *Options) (*Table, error) {
	if o.Capacity == 0 {
		o.Capacity = capacityOf(len(mem))
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
		image: imageOf(mem, o.Capacity),
		index: make([]bucket, indexLen(o.Capacity)),
		clock: o.Clock,
		owned: slots.New(o.Capacity, o.Capacity/reservePart, OwnerNode, OwnerOutside),
	}
	t.now.Store(o.Clock())
	return t, nil
}

// reservePart is the part of the capacity that is reserved for each of the node's own owners.
const reservePart = 32

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
	var r record
	for i := range used {
		s := &t.slots[i]
		if t.whole(i, &r, &t.hasher) && t.adopt(i, &r) {
			s.live.Store(uint64(makeLive(s.seq.Load(), s.loadLive().state(), 0)))
			s.seen.Store(notAfter(s.seen.Load(), now))
			t.kept++
			continue
		}
		if s.seq.Load()&3 != 0 || s.live.Load() != 0 {
			t.discarded++
		}
		s.live.Store(0)
		s.seq.Store((s.seq.Load() + 3) &^ 3)
		t.owned.LeaveOut(i)
	}
	t.len.Store(int64(t.kept))
}

// notAfter gives a time that does not lie in the future.
func notAfter(seen, now uint32) uint32 {
	if idle(now, seen) == 0 {
		return now
	}
	return seen
}

// adopt indexes a slot that was found whole, unless one of its keys is there already.
func (t *Table) adopt(i uint32, r *record) bool {
	ho, hr := r.hashes(&t.hasher)
	if _, taken := t.find(&r.tuple[Original], ho); taken {
		return false
	}
	if _, taken := t.find(&r.tuple[Reply], hr); taken {
		return false
	}
	if !t.linkBoth(i, r, ho, hr) {
		return false
	}
	t.owned.Adopt(i, r.owner, t.clientOf(&r.tuple[Original]))
	return true
}

// Stats tells the size and the counters.
func (t *Table) Stats() Stats {
	owners, most := t.owned.Stats()
	return Stats{
		Len: int(t.len.Load()), Capacity: len(t.slots), Owners: owners, Most: most,
		Kept: t.kept, Discarded: t.discarded, Unfit: t.unfit, Reformatted: t.reformatted,
		Expired: t.expired.Load(), Full: t.full.Load(), NoPort: t.noPort.Load(),
		Evicted: Evicted{t.pressed.Load(), t.fromMost.Load(), t.fromOwn.Load(), t.crowded.Load()},
	}
}
