package flow

import (
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/packet"
)

// Lookup finds the flow of a packet, in either direction, and fills hit. It refreshes the flow: last seen and, for TCP
// and SCTP by the flags of the segment, the state advance. A reset that its receiver will ignore changes nothing.
// Lookup returns false for expired flows; hit then means nothing. When hit.State is Closed, the packet opens a new
// connection with the tuples of an ended one: the caller deletes the flow and goes on as after a miss. When it is
// Refused or Abandoned, the packet tells the side that opened the flow that its Backend will not have the connection,
// when it is Accepted, that it will. For a SYN from the side that opened the flow, hit.State is SynSent and hit.Checked
// is 0 however far the flow has come: nothing that was found for an earlier connection with these tuples is valid for a
// new one.
func (t *Table) Lookup(tp *packet.Tuple, seg packet.Segment, hit *Hit) bool {
	s, l, seen := t.get(tp, hit)
	if s == nil {
		return false
	}
	now := t.now.Load()
	if now != seen && expired(now, seen, l.state()) {
		return false
	}
	if !settled(l.state(), seg.Flags) {
		if seg.Flags&packet.RST != 0 && tp.Proto == packet.TCP && !s.marks.load().obeyed(l.state(), hit.Dir, seg) {
			return true
		}
		opens := tp.Proto.Connects() && packet.Opens(seg.Flags)
		if opens && (l.state() == TimeWait || l.state() == Reset) {
			hit.State = Closed
			return true
		}
		hit.State = t.advance(s, l, hit, tp, seg.Flags)
		now = seenIn(now, l.state(), hit.State)
		switch {
		case opens && hit.Dir == Original:
			hit.State, hit.Checked = SynSent, 0
		case hit.Dir == Reply && hit.Backend != 0 && tp.Proto == packet.TCP:
			hit.State = t.answer(s, hit, l.state())
		}
	}
	if now != seen {
		s.seen.Store(now)
	}
	return true
}

// answer returns how a packet of a Backend, for which hit's state has become what it is and was another one, is
// reported.
func (t *Table) answer(s *slot, hit *Hit, was State) State {
	switch is := hit.State; {
	case is == SynReceived && was == SynSent:
		return Accepted
	case is == Reset && was == SynSent && s.marks.load()[Reply] == 0:
		return Refused // a flow that was reset is in SynSent again when its client goes on, but has its marks
	case is == Reset && was == Established && s.countsWith(&t.ledgers[hit.Ref&(maxSlots-1)])[Reply].Packets == 1:
		return Abandoned // it has sent nothing but what Accepted the connection
	default:
		return is
	}
}

// advance stores the state after a packet, unless the slot holds another flow than that of l.
func (t *Table) advance(s *slot, l live, hit *Hit, tp *packet.Tuple, tcpFlags uint8) State {
	for was := l; ; {
		then := next(l.state(), hit.Dir, tp, tcpFlags)
		if then == l.state() {
			return then
		}
		if s.swap(l, l.with(then)) {
			if t.changed != nil && hit.Backend != 0 {
				t.changed(Change{
					Ref: hit.Ref, Backend: hit.Backend, Kind: hit.Kind, Dir: hit.Dir, Was: l.state(), Is: then, Goes: s.marks.load()[Reply] != 0,
				})
			}
			if t.answered != nil && hit.Dir == Reply && l.state().waiting() && then.open() && s.marks.load()[Reply] == 0 {
				t.answered(hit.Ref)
			}
			return then
		}
		if l = s.loadLive(); !l.sameFlow(was) {
			return then
		}
	}
}

// Peek finds the flow of a packet as Lookup does, without refreshing it. It serves packets that quote others (ICMP
// errors), and display.
func (t *Table) Peek(tp *packet.Tuple, hit *Hit) bool {
	s, l, seen := t.get(tp, hit)
	return s != nil && !expired(t.now.Load(), seen, l.state())
}

// get fills hit with a consistent view of the flow of tp, expired or not, and returns its slot; nil when there is none.
// Nearly always the first key with the right tag in the home bucket leads to it. All other cases are left to search, so
// that get needs few instructions: the fewer there are, the further the processor gets with the next packet while this
// one waits for memory.
func (t *Table) get(tp *packet.Tuple, hit *Hit) (s *slot, l live, seen uint32) {
	h := t.hash(tp)
	b := &t.index[t.home(h)]
	c := b.candidates(tag(h) * eachByte)
	if c != 0 {
		k := b.keys[c.first()].Load()
		if keyFits(k, h) {
			s := &t.slots[keySlot(k)]
			mine, other := s.tuples(keyDir(k))
			if l, seen := s.read(k, mine, other, tp, hit); l.state() != free {
				return s, l, seen
			}
		}
	}
	if c == 0 && b.farthest() == 0 {
		return nil, 0, 0
	}
	return t.search(h, tp, hit)
}

// search is get for a tuple of hash h, without the short cut.
func (t *Table) search(h uint64, tp *packet.Tuple, hit *Hit) (s *slot, l live, seen uint32) {
	n, tags := t.home(h), tag(h)*eachByte
	for far, last := uint32(0), uint32(0); ; far++ {
		b := &t.index[n]
		for c := b.candidates(tags); c != 0; c = c.rest() {
			k := b.keys[c.first()].Load() // may have changed since its tag was seen, even to 0
			if !keyFits(k, h) {
				continue
			}
			s := &t.slots[keySlot(k)]
			mine, other := s.tuples(keyDir(k))
			if l, seen := s.read(k, mine, other, tp, hit); l.state() != free {
				return s, l, seen
			}
		}
		if far == 0 {
			last = b.farthest()
		}
		if far == last {
			return nil, 0, 0
		}
		n = t.after(n)
	}
}

// read fills hit if the slot holds tp in the direction of k, its key. It returns 0 for l when the slot does not, and
// when the slot is emptied or reused meanwhile: its live word is 0 while its other words change, and has another
// sequence number afterwards. The code has no branch on the direction or on a single word: a mispredicted one would
// cost as much as all the rest.
func (s *slot) read(k uint32, mine, other *words, tp *packet.Tuple, hit *Hit) (l live, seen uint32) {
	before, proto := s.loadLive(), tp.Proto
	differ := ((mine.at(0) ^ word0(&tp.Src)) | (mine.at(1) ^ word1(&tp.Src))) |
		((mine.at(2) ^ word0(&tp.Dst)) | (mine.at(3) ^ word1(&tp.Dst))) | (mine.at(4) ^ wordPorts(tp))
	// To is the other tuple reversed.
	to := &hit.To
	setAddr(&to.Src, other.at(2), other.at(3))
	setAddr(&to.Dst, other.at(0), other.at(1))
	ports, meta := other.at(4), atomic.LoadUint32(&s.meta)
	to.SrcPort, to.DstPort, to.Space, to.Proto = uint16(ports>>16), uint16(ports), uint32(ports>>32), proto
	hit.Dir, hit.Kind, hit.Backend, hit.Via = keyDir(k), uint8(meta>>metaKind), atomic.LoadUint64(&s.backend), atomic.LoadUint64(&s.via)
	hit.Translate = meta&metaTranslate != 0
	seen, l = s.seen.Load(), s.loadLive()
	hit.Ref, hit.State, hit.Checked = ref(keySlot(k), uint32(l>>8)), l.state(), l.checked()
	if differ|uint64(uint8(meta)^uint8(proto))|uint64((l^before)>>8&liveSeq) != 0 {
		return 0, 0
	}
	return l, seen
}

// SetChecked records that the flow's backend was found valid in this generation of the caller's table. It does nothing
// when the flow is gone.
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

// deref returns the slot of a ref and its sequence number, or nil when the ref is stale.
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
