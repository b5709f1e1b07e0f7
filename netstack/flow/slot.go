package flow

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	slotSize   = 128
	headerSize = 4096 // a page, so that slots are aligned to cache lines
	maxSlots   = 1 << refBits
	refBits    = 24
	magic      = 0x776f6c66_70617431 // "1tapflow"
	version    = 1
)

// header is the start of the shared memory.
type header struct {
	magic    atomic.Uint64 // written last
	version  atomic.Uint32
	slotSize atomic.Uint32
	capacity atomic.Uint64
	seed     atomic.Uint64
	used     atomic.Uint64 // slots from here on were never written
}

// A tuple is hashed, compared and stored as five words and the protocol.
func word0(a *packet.Addr) uint64 { return binary.NativeEndian.Uint64(a[:8]) }
func word1(a *packet.Addr) uint64 { return binary.NativeEndian.Uint64(a[8:]) }

func setAddr(a *packet.Addr, w0, w1 uint64) {
	binary.NativeEndian.PutUint64(a[:8], w0)
	binary.NativeEndian.PutUint64(a[8:], w1)
}

// wordPorts reads each field by itself: the compiler would join two 16-bit ports to one read of 32 bits, which has to wait
// until both have left the store buffer when they have just been written, as by a parser.
func wordPorts(t *packet.Tuple) uint64 {
	return (uint64(t.Zone)<<16|uint64(t.DstPort))<<16 | uint64(t.SrcPort)
}

func setPorts(t *packet.Tuple, w uint64) {
	t.SrcPort, t.DstPort, t.Zone = uint16(w), uint16(w>>16), uint32(w>>32)
}

// The odd constants of wyhash, which have as many ones as zeros.
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

// hasher is the secret seed, and what it gives with the constants. A pod chooses its own tuples and must not be able to
// choose its bucket.
type hasher struct{ seed, seed0, seed1, seed2, seed3 uint64 }

func newHasher(seed uint64) hasher {
	return hasher{seed, seed ^ mix0, seed ^ mix1, seed ^ mix2, seed ^ mix3}
}

// hash makes a product of the ports too: where they joined later, with one multiplication less, the ports of one client
// lay too regularly, and a table with the flows of few clients had to evict some.
func (h *hasher) hash(t *packet.Tuple) uint64 {
	a := mum(word0(&t.Src)^h.seed, word1(&t.Src)^h.seed0)
	b := mum(word0(&t.Dst)^h.seed1, word1(&t.Dst)^h.seed2)
	c := mum(wordPorts(t)^h.seed3, uint64(t.Proto)^h.seed1)
	return mum(a^mix0^bits.RotateLeft64(c, 32), b^c^h.seed)
}

// slot is one flow in the shared memory. The words up to via are constant while the sequence number stays.
type slot struct {
	seq     atomic.Uint32 // a multiple of 4: free; 4n+2: in use; odd: being written
	sum     atomic.Uint32
	tuple   [2]words      // by Dir
	meta    atomic.Uint64 // proto, kind << 8, created << 32
	backend atomic.Uint64
	via     atomic.Uint64
	live    atomic.Uint64 // see live
	seen    atomic.Uint32 // seconds of the boot-time clock
	next    atomic.Uint32 // while free: the number of the next free slot, plus 1; private to the process
}

// words are those of a tuple, without its protocol.
type words [5]atomic.Uint64

// tuples gives the tuple of a direction and the other one. The compiler makes the sum of shifts shorter than the choice
// between two numbers which it makes of an index.
func (s *slot) tuples(d Dir) (mine, other *words) {
	const size = unsafe.Sizeof(words{}) // 32 + 8
	at, first := uintptr(d)<<5+uintptr(d)<<3, unsafe.Pointer(&s.tuple)
	return (*words)(unsafe.Add(first, at)), (*words)(unsafe.Add(first, size-at))
}

// The parts of a slot's meta word: the protocol, the kind, whether its packets are translated, and when it was made.
// Entries of older agents do not say whether; in them the first of the two bits is 0.
const (
	metaKind      = 8
	metaJudged    = 1 << 16
	metaTranslate = 1 << 17
	metaCreated   = 32
)

func makeMeta(e *Entry, now uint32) uint64 {
	m := uint64(e.Orig.Proto) | uint64(e.Kind)<<metaKind | metaJudged | uint64(now)<<metaCreated
	if to := e.Reply.Reverse(); translates(&e.Orig, &to) {
		m |= metaTranslate
	}
	return m
}

// live is the word of a slot that packets change: state, low bits of the slot's sequence number << 8, checked << 32. It is
// exchanged whole, so that what is meant for one flow never reaches its successor in the slot.
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

// image is a slot's constant words.
type image struct {
	tuple        [2]packet.Tuple
	meta         uint64
	backend, via uint64
}

func (m *image) sum(s *hasher) uint32 {
	h := mum(s.hash(&m.tuple[Original])^mix2, s.hash(&m.tuple[Reply])^mix3)
	h = mum(h^m.meta, s.seed0) ^ mum(m.backend^s.seed1, m.via^s.seed2)
	return uint32(h ^ h>>32)
}

// translates tells whether a packet of tuple tp changes its addresses or ports when it becomes to.
func translates(tp, to *packet.Tuple) bool {
	t := *to
	t.Zone, t.Proto = tp.Zone, tp.Proto
	return t != *tp
}

// write fills a free slot.
func (s *slot) write(m *image, sum uint32, state State, now, checked uint32) {
	seq := s.seq.Add(1)
	for d := range s.tuple {
		w, t := &s.tuple[d], &m.tuple[d]
		w[0].Store(word0(&t.Src))
		w[1].Store(word1(&t.Src))
		w[2].Store(word0(&t.Dst))
		w[3].Store(word1(&t.Dst))
		w[4].Store(wordPorts(t))
	}
	s.meta.Store(m.meta)
	s.backend.Store(m.backend)
	s.via.Store(m.via)
	s.sum.Store(sum)
	s.seen.Store(now)
	s.live.Store(uint64(makeLive(seq+1, state, checked)))
	s.seq.Store(seq + 1)
}

// retire empties a slot in use.
func (s *slot) retire() {
	seq := s.seq.Add(1)
	s.live.Store(0)
	s.seq.Store(seq + 1)
}

// load copies the constant words; false when the slot is not in use under seq, or changes meanwhile.
func (s *slot) load(m *image, seq uint32) bool {
	if s.seq.Load() != seq || seq&3 != 2 {
		return false
	}
	m.meta = s.meta.Load()
	for d := range s.tuple {
		w, t := &s.tuple[d], &m.tuple[d]
		setAddr(&t.Src, w[0].Load(), w[1].Load())
		setAddr(&t.Dst, w[2].Load(), w[3].Load())
		setPorts(t, w[4].Load())
		t.Proto = packet.Proto(m.meta)
	}
	m.backend, m.via = s.backend.Load(), s.via.Load()
	return s.seq.Load() == seq
}

// whole judges a slot that another process left behind.
func (s *slot) whole(m *image, h *hasher) bool {
	seq, l := s.seq.Load(), s.loadLive()
	return s.load(m, seq) && l.of(seq) && l.state() != free && l.state() < Closed && m.sum(h) == s.sum.Load()
}

// matches reports whether the slot holds t in direction d, and the sequence number under which it does.
func (s *slot) matches(t *packet.Tuple, d Dir) (seq uint32, ok bool) {
	seq = s.seq.Load()
	w := &s.tuple[d&1]
	if (w[4].Load()^wordPorts(t))|(w[1].Load()^word1(&t.Src))|(w[3].Load()^word1(&t.Dst))|
		(w[0].Load()^word0(&t.Src))|(w[2].Load()^word0(&t.Dst))|(s.meta.Load()^uint64(t.Proto))&0xff != 0 {
		return 0, false
	}
	return seq, seq&3 == 2 && s.seq.Load() == seq
}

// ref names a slot together with a part of its sequence number, so that a stale one is recognised.
func ref(i, seq uint32) uint32 { return i | seq>>2<<refBits }
