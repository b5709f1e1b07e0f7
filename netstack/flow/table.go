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

// Owners with a reserve of a thirty-second of the capacity each, which they get even when others are using it. All
// other owners are numbers that nobody can choose for himself, and practically never this small.
const (
	OwnerNode    uint64 = 1 // the node itself: its processes, probes, DNS, Ingress
	OwnerOutside uint64 = 2 // all clients outside the cluster who come in by this node's sockets
)

// Entry is one flow, as it is inserted and shown.
type Entry struct {
	// Orig is the tuple of the first packet as it arrived. Reply is the tuple of the packets that answer it, as they
	// arrive, before translation. Without translation Reply is Orig.Reverse(). Both have one Proto; their spaces may
	// differ.
	Orig, Reply packet.Tuple
	// Backend is the stable identity of the chosen backend, 0 for none.
	Backend uint64
	// Via is a number of the caller's, which SetVia changes. This package does not interpret it.
	Via uint64
	// Kind belongs to the caller. This package does not interpret it.
	Kind uint8
	// Owner says who began the flow: a stable number, 0 where it is not known. When the table is full, owners with few
	// flows get room from the one who has the most; see package share.
	Owner uint64
	// Cluster is the stable identity of the cluster to which Backend belongs, 0 for the node's own. This package does
	// not interpret it.
	Cluster uint64
	// Policy is the version of the rules by which the caller permitted the flow, 0 for none. This package does not
	// interpret it.
	Policy uint32
	// Counts holds the counts by Dir. A flow begins with those that Insert is given.
	Counts [2]Count
	// Segment is what the TCP header of the first packet says. Range does not fill it in.
	Segment packet.Segment
	// Begins is the state in which Insert begins the flow; 0 for the one that its first packet says. Range does not
	// fill it in: Info has it.
	Begins State
	// Checked is the generation of the caller's table in which Backend was last found valid, 0 for never. It does not
	// survive the process.
	Checked uint32
}

// Hit is the result of a Lookup.
type Hit struct {
	// Ref names the flow for SetChecked, Count and Delete, as long as the flow exists.
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
	// of the tuple it is made from, and does not affect Translate.
	To packet.Tuple
}

// Options configures Open and Convert. The zero value is valid.
type Options struct {
	// Capacity is the largest number of flows, at most 1<<24; 0 means as many as the memory holds.
	Capacity int
	// Clock returns the seconds of a clock that goes on across processes; nil means BootClock.
	Clock func() uint32
	// Seed is the secret of the hash for newly formatted memory; 0 means a random one, or for Convert that of the old
	// memory.
	Seed uint64
	// Owner returns who began a flow, for flows that Convert finds in memory without owners. nil: no owner is known.
	Owner func(*Entry) uint64
}

// Stats holds counters since Open, and the present size.
type Stats struct {
	Len, Capacity int
	// Owners is the number of owners with flows in the table. Most is the number of flows of the owner who has the
	// most.
	Owners, Most int
	// Kept and Discarded count what Open or Convert found: whole entries, and torn ones, which were dropped. Unfit
	// counts the whole ones for which Convert had no room.
	Kept, Discarded, Unfit int
	// Reformatted is set when the memory was of another version, layout or capacity, or no flow table's, and its flows
	// are lost.
	Reformatted bool
	// Expired counts flows that were freed when their time was over. Evicted counts those that were freed earlier.
	Expired uint64
	Evicted Evicted
	// Full and NoPort count failed inserts.
	Full, NoPort uint64
}

// Evicted counts flows that were freed before their time, by cause.
type Evicted struct {
	// Pressed flows were idle, and their owner had more than an equal share while the table was nearly full.
	Pressed uint64
	// FromMost flows made room for another owner's flow; their owner had the most flows.
	FromMost uint64
	// FromOwn flows made room for another flow of their own owner.
	FromOwn uint64
	// Crowded flows made room in the index.
	Crowded uint64
	// ForPort flows gave their port to another flow, for which there was none.
	ForPort uint64
}

// Table is the flow table. Its methods are safe for concurrent use.
type Table struct {
	hasher
	index []bucket
	image
	clock func() uint32
	_     [64]byte // keeps the words below, which are written, out of the cache line that every lookup reads

	now  atomic.Uint32 // the time of clock at the last Sweep
	used atomic.Uint32 // mirrors head.used
	len  atomic.Int64
	_    [64]byte

	stripe [stripes]struct {
		sync.Mutex
		_ [56]byte
	}

	owned *slots.Slots
	ended func(Entry, Info) // nil: nobody is told

	changed  func(Change) // nil: nobody is told
	answered func(uint32) // nil: nobody is told

	sweepMu sync.Mutex
	cursor  uint32

	expired, full, noPort               atomic.Uint64
	pressed, fromMost, fromOwn, crowded atomic.Uint64
	forPort                             atomic.Uint64
	kept, discarded, unfit              int
	reformatted                         bool
}

// BootClock returns the seconds of CLOCK_BOOTTIME, which all processes share and which goes on while the machine
// sleeps.
func BootClock() uint32 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux since 2.6.39 has it
	}
	return uint32(ts.Sec)
}

// Open makes a table of mem. mem must stay mapped as long as the table is used, and belongs to the table alone. Open
// formats zeroed memory, and takes over memory of an earlier table of this version and capacity with its flows. It
// formats anything else anew and reports that in Stats. Where Serves returns false, Convert saves the flows.
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

// lay makes a table over memory whose content is not yet looked at.
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
		// If this process dies before the end, the next one formats the memory again.
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

// attach takes over what an earlier process left. It checks every slot before it trusts it.
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

// notAfter returns seen, or now if seen lies in the future.
func notAfter(seen, now uint32) uint32 {
	if idle(now, seen) == 0 {
		return now
	}
	return seen
}

// adopt indexes a whole slot. It returns false when one of its keys is in the index already, or has no room there.
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

// Stats returns the size and the counters.
func (t *Table) Stats() Stats {
	owners, most := t.owned.Stats()
	return Stats{
		Len: int(t.len.Load()), Capacity: len(t.slots), Owners: owners, Most: most,
		Kept: t.kept, Discarded: t.discarded, Unfit: t.unfit, Reformatted: t.reformatted,
		Expired: t.expired.Load(), Full: t.full.Load(), NoPort: t.noPort.Load(),
		Evicted: Evicted{t.pressed.Load(), t.fromMost.Load(), t.fromOwn.Load(), t.crowded.Load(), t.forPort.Load()},
	}
}
