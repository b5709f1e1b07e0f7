package flow

import (
	"math/bits"

	"tapestry.dev/tapestry/netstack/packet"
)

// Lookup finds the flow of a packet, in either direction, and fills hit. It counts as a sign of life of the flow:
// last seen and state advance, by the TCP flags for TCP. Expired flows are not found. When hit.State is Closed, the packet
// opens a new connection on the tuples of an ended one: Delete the flow and go on as after a miss.
func (t *Table) Lookup(tp *packet.Tuple, tcpFlags uint8, hit *Hit) bool {
	s, l := t.get(tp, hit)
	if s == nil {
		return false
	}
	if !settled(hit.State, tcpFlags) {
		if tp.Proto == packet.TCP && (hit.State == TimeWait || hit.State == Reset) && pureSYN(tcpFlags) {
			hit.State = Closed
			return true
		}
		hit.State = s.advance(l, hit.Dir, tp, tcpFlags)
	}
	if now := t.now.Load(); s.seen.Load() != now {
		s.seen.Store(now)
	}
	return true
}

// advance stores the state after a packet, unless the slot has got another flow since it was l.
func (s *slot) advance(l live, d Dir, tp *packet.Tuple, tcpFlags uint8) State {
	for was := l; ; {
		then := next(l.state(), d, tp, tcpFlags)
		if then == l.state() || s.swap(l, l.with(then)) {
			return then
		}
		if l = s.loadLive(); !l.sameFlow(was) {
			return then
		}
	}
}

// Peek finds the flow of a packet as Lookup does, without being a sign of life: for packets that speak of others (ICMP
// errors) and for showing.
func (t *Table) Peek(tp *packet.Tuple, hit *Hit) bool {
	s, _ := t.get(tp, hit)
	return s != nil
}

// get fills hit with a consistent view of the flow of tp that is not expired, and gives its slot; nil when there is none.
func (t *Table) get(tp *packet.Tuple, hit *Hit) (*slot, live) {
	h := hash(tp, t.seed)
	tags, n := uint64(tag(h))*eachByte, t.home(h)
	for d, last := uint32(0), uint32(0); ; d++ {
		b := &t.index[n]
		for c := b.candidates(tags); c != 0; c = c.rest() {
			k := b.half(c.first()) // may have become another since its tag was seen, even 0
			s := &t.slots[keySlot(k)]
			if l, seen, ok := s.read(tp, k, hit); ok {
				if idle(t.now.Load(), seen) > timeouts[l.state()] {
					return nil, 0
				}
				return s, l
			}
		}
		if d == 0 {
			last = b.farthest()
		}
		if d == last {
			return nil, 0
		}
		n = t.after(n)
	}
}

// read fills hit if the slot holds tp in the direction of k, its key. It is one straight piece, with a branch neither on
// the direction nor on a single word: guessed wrong, it would cost as much as everything else here.
func (s *slot) read(tp *packet.Tuple, k uint32, hit *Hit) (l live, seen uint32, ok bool) {
	seq, meta := s.seq.Load(), s.meta.Load()
	d := keyDir(k)
	w, v := &s.tuple[d&1], &s.tuple[d&1^1]
	src0, src1, dst0, dst1, ports := word0(&tp.Src), word1(&tp.Src), word0(&tp.Dst), word1(&tp.Dst), wordPorts(tp)
	if (w[0].Load()^src0)|(w[1].Load()^src1)|(w[2].Load()^dst0)|(w[3].Load()^dst1)|(w[4].Load()^ports)|
		(meta^uint64(tp.Proto))&0xff != 0 {
		return 0, 0, false
	}
	// To is the other tuple reversed.
	to0, to1, to2, to3, toPorts := v[2].Load(), v[3].Load(), v[0].Load(), v[1].Load(), v[4].Load()
	hit.Backend, hit.Via, seen, l = s.backend.Load(), s.via.Load(), s.seen.Load(), s.loadLive()
	if seq&3 != 2 || s.seq.Load() != seq || !l.of(seq) {
		return 0, 0, false // emptied or reused under our eyes: its flow is gone
	}
	to := &hit.To
	setAddr(&to.Src, to0, to1)
	setAddr(&to.Dst, to2, to3)
	to.SrcPort, to.DstPort, to.Zone, to.Proto = uint16(toPorts>>16), uint16(toPorts), uint32(toPorts>>32), tp.Proto
	hit.Ref, hit.Dir, hit.Kind, hit.State, hit.Checked = ref(keySlot(k), seq), d, uint8(meta>>8), l.state(), l.checked()
	hit.Translate = (to0^src0)|(to1^src1)|(to2^dst0)|(to3^dst1)|
		uint64(bits.RotateLeft32(uint32(toPorts), 16)^uint32(ports)) != 0
	return l, seen, true
}

// SetChecked notes that the flow's backend was found valid in the caller's table of that generation. A flow that is
// gone is left alone.
func (t *Table) SetChecked(r uint32, generation uint32) {
	s, seq := t.deref(r)
	if s == nil {
		return
	}
	for l := s.loadLive(); l.of(seq) && l.checked() != generation; l = s.loadLive() {
		if s.swap(l, makeLive(seq, l.state(), generation)) {
			return
		}
	}
}

// deref gives the slot of a ref and its sequence number, or nil when the ref is stale.
func (t *Table) deref(r uint32) (*slot, uint32) {
	i := r & (maxSlots - 1)
	if int(i) >= len(t.slots) {
		return nil, 0
	}
	s := &t.slots[i]
	seq := s.seq.Load()
	if seq&3 != 2 || ref(i, seq) != r {
		return nil, 0
	}
	return s, seq
}
