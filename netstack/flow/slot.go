package flow

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"tapestry.dev/tapestry/netstack/packet"
)

// A tuple is hashed, compared and stored as five words and the protocol.
func word0(a *packet.Addr) uint64 { return binary.NativeEndian.Uint64(a[:8]) }
func word1(a *packet.Addr) uint64 { return binary.NativeEndian.Uint64(a[8:]) }

func setAddr(a *packet.Addr, w0, w1 uint64) {
	binary.NativeEndian.PutUint64(a[:8], w0)
	binary.NativeEndian.PutUint64(a[8:], w1)
}

// wordPorts reads each field by itself. The compiler would otherwise combine the reads of two 16-bit ports to one of 32
// bits. When a parser has just written the ports, that read would have to wait until both writes have left the store
// buffer.
func wordPorts(t *packet.Tuple) uint64 {
	return (uint64(t.Space)<<16|uint64(t.DstPort))<<16 | uint64(t.SrcPort)
}

func setPorts(t *packet.Tuple, w uint64) {
	t.SrcPort, t.DstPort, t.Space = uint16(w), uint16(w>>16), uint32(w>>32)
}

// The odd constants of wyhash, which have as many one bits as zero bits.
const (
	mix0 = 0xa0761d6478bd642f
	mix1 = 0xe7037ed1a0b428db
	mix2 = 0x8ebc6af09c88c6e3
	mix3 = 0x589965cc75374cc3
)

func mum(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// hasher holds the secret seed and its combinations with the constants. A pod chooses its own tuples and must not be
// able to choose their bucket.
type hasher struct{ seed, seed0, seed1, seed2, seed3 uint64 }

func newHasher(seed uint64) hasher {
	return hasher{seed, seed ^ mix0, seed ^ mix1, seed ^ mix2, seed ^ mix3}
}

// hash multiplies the ports, too. A variant with one multiplication less, which added the ports later, spread the ports
// of one client too regularly: a table with the flows of few clients had to evict some.
func (h *hasher) hash(t *packet.Tuple) uint64 {
	a := mum(word0(&t.Src)^h.seed, word1(&t.Src)^h.seed0)
	b := mum(word0(&t.Dst)^h.seed1, word1(&t.Dst)^h.seed2)
	c := mum(wordPorts(t)^h.seed3, uint64(t.Proto)^h.seed1)
	return mum(a^mix0^bits.RotateLeft64(c, 32), b^c^h.seed)
}

// slot holds the part of a flow that packets need: two cache lines of the shared memory. The tuples, meta, backend and
// via are constant while the sequence number stays the same; see write.
type slot struct {
	seq     atomic.Uint32 // a multiple of 4: free; 4n+2: in use; odd: being written
	seen    atomic.Uint32 // seconds of the boot-time clock
	tuple   [2]words      // by Dir
	meta    uint32        // proto, kind << 8, translated << 16
	counts  [2]uint32     // by Dir; see count
	marks   marks
	backend uint64
	via     uint64
	live    atomic.Uint64 // see live
}

// words is a tuple without its protocol.
type words [5]uint64

//go:norace
func (w *words) store(t *packet.Tuple) {
	w[0], w[1] = word0(&t.Src), word1(&t.Src)
	w[2], w[3] = word0(&t.Dst), word1(&t.Dst)
	w[4] = wordPorts(t)
}

func (w *words) at(i int) uint64 { return atomic.LoadUint64(&w[i]) }

func (w *words) load(t *packet.Tuple, proto packet.Proto) {
	setAddr(&t.Src, w.at(0), w.at(1))
	setAddr(&t.Dst, w.at(2), w.at(3))
	setPorts(t, w.at(4))
	t.Proto = proto
}

// tuples returns the tuple of a direction and the other one. The compiler makes shorter code of the sum of shifts than
// of an index, which it turns into a choice between two numbers.
func (s *slot) tuples(d Dir) (mine, other *words) {
	const size = unsafe.Sizeof(words{}) // 32 + 8
	at, first := uintptr(d)<<5+uintptr(d)<<3, unsafe.Pointer(&s.tuple)
	return (*words)(unsafe.Add(first, at)), (*words)(unsafe.Add(first, size-at))
}

// The parts of a slot's meta word: the protocol, the kind, and whether its packets are translated.
const (
	metaKind      = 8
	metaTranslate = 1 << 16
)

func makeMeta(orig, reply *packet.Tuple, kind uint8) uint32 {
	m := uint32(orig.Proto) | uint32(kind)<<metaKind
	if Translates(orig, reply) {
		m |= metaTranslate
	}
	return m
}

// live is the word of a slot that packets change: state, low bits of the slot's sequence number << 8, checked << 32. It
// is exchanged as a whole, so that a change meant for one flow never reaches the next flow in the slot.
type live uint64

const liveSeq = 1<<24 - 1

func makeLive(seq uint32, state State, checked uint32) live {
	return live(checked)<<32 | live(seq&liveSeq)<<8 | live(state)
}

func (l live) state() State         { return State(l) }
func (l live) seq() uint32          { return uint32(l>>8) & liveSeq }
func (l live) checked() uint32      { return uint32(l >> 32) }
func (l live) of(seq uint32) bool   { return l.seq() == seq&liveSeq }
func (l live) sameFlow(m live) bool { return (l^m)>>8&liveSeq == 0 }
func (l live) with(s State) live    { return l&^0xff | live(s) }
func (s *slot) loadLive() live      { return live(s.live.Load()) }
func (s *slot) swap(l, m live) bool { return s.live.CompareAndSwap(uint64(l), uint64(m)) }

// record is the content of a slot and its ledger, without what every packet changes.
type record struct {
	tuple          [2]packet.Tuple // this and the words up to cluster are constant
	meta, created  uint32
	backend, via   uint64
	owner, cluster uint64
	policy         uint32
	counts         [2]Count
	marks          marks
}

// hashes returns the hashes of both tuples.
func (r *record) hashes(s *hasher) (orig, reply uint64) {
	return s.hash(&r.tuple[Original]), s.hash(&r.tuple[Reply])
}

// sum returns the checksum of the constant words. orig and reply are the hashes of the tuples.
func (r *record) sum(s *hasher, orig, reply uint64) uint32 {
	h := mum(orig^mix2, reply^mix3)
	h = mum(h^uint64(r.meta)^uint64(r.created)<<32, s.seed0) ^ mum(r.backend^s.seed1, r.via^s.seed2)
	h = mum(h^r.owner, s.seed3) ^ mum(r.cluster^s.seed1, s.seed0)
	return uint32(h ^ h>>32)
}

// entry returns the record as the caller sees it.
func (r *record) entry() Entry {
	return Entry{
		Orig: r.tuple[Original], Reply: r.tuple[Reply], Backend: r.backend, Via: r.via, Kind: uint8(r.meta >> metaKind),
		Owner: r.owner, Cluster: r.cluster, Policy: r.policy, Counts: r.counts,
	}
}

// Translates reports whether packets of a flow with these tuples change their addresses or ports. Spaces do not count.
func Translates(orig, reply *packet.Tuple) bool {
	return orig.Src != reply.Dst || orig.Dst != reply.Src || orig.SrcPort != reply.DstPort || orig.DstPort != reply.SrcPort
}

// write fills a free slot and its ledger. It stores constant words without sync/atomic, since an atomic store costs as
// much as ten plain ones and a flow has twelve such words. No reader believes them before the live word and the
// sequence number name the new flow. A late reader of the slot's previous flow sees by these two that the slot was
// retired, since that happened before a mutex was released that the writer has acquired since.
//
//go:norace
func (s *slot) write(l *ledger, r *record, sum uint32, state State, seen, checked uint32) {
	seq := s.seq.Add(1)
	for d := range s.tuple {
		s.tuple[d].store(&r.tuple[d])
	}
	s.meta, s.backend, s.via = r.meta, r.backend, r.via
	l.write(r, sum, seq+1)
	s.setCounts(l, &r.counts)
	s.marks = r.marks
	s.seen.Store(seen)
	s.live.Store(uint64(makeLive(seq+1, state, checked)))
	s.seq.Store(seq + 1)
}

// retire empties a slot that is in use, and returns the last state of its flow.
func (s *slot) retire() State {
	seq := s.seq.Add(1)
	l := live(s.live.Swap(0))
	s.seq.Store(seq + 1)
	return l.state()
}

// load copies the constant words of the slot. It returns false when the slot is not in use under seq, or changes
// meanwhile.
func (s *slot) load(r *record, seq uint32) bool {
	if s.seq.Load() != seq || seq&3 != 2 {
		return false
	}
	r.meta = atomic.LoadUint32(&s.meta)
	for d := range s.tuple {
		s.tuple[d].load(&r.tuple[d], packet.Proto(r.meta))
	}
	r.backend, r.via = atomic.LoadUint64(&s.backend), atomic.LoadUint64(&s.via)
	return s.seq.Load() == seq
}

// matches reports whether the slot holds t in direction d, and returns the sequence number under which it does.
func (s *slot) matches(t *packet.Tuple, d Dir) (seq uint32, ok bool) {
	seq = s.seq.Load()
	w := &s.tuple[d&1]
	if (w.at(4)^wordPorts(t))|(w.at(1)^word1(&t.Src))|(w.at(3)^word1(&t.Dst))|
		(w.at(0)^word0(&t.Src))|(w.at(2)^word0(&t.Dst))|uint64(uint8(atomic.LoadUint32(&s.meta))^uint8(t.Proto)) != 0 {
		return 0, false
	}
	return seq, seq&3 == 2 && s.seq.Load() == seq
}

// Slot returns the number that the flow which ref names has while it is in the table, and no other flow has then. It is
// below the table's capacity.
func Slot(ref uint32) int { return int(ref & (maxSlots - 1)) }

// ref names a slot together with a part of its sequence number, so that a stale ref is recognised.
func ref(i, seq uint32) uint32 { return i | seq>>2<<refBits }
