package flow

import "tapestry.dev/tapestry/netstack/packet"

// Lookup finds the flow of a packet, in either direction, and fills hit. It counts as a sign of life of the flow:
// last seen and state advance, by the TCP flags for TCP. Expired flows are not found. When hit.State is Closed, the packet
// opens a new connection on the tuples of an ended one: Delete the flow and go on as after a miss.
func (t *Table) Lookup(tp *packet.Tuple, tcpFlags uint8, hit *Hit) bool {
	p, l, ok := t.get(tp, hit)
	if !ok {
		return false
	}
	s := &t.slots[p.slot]
	if then := next(hit.State, p.dir, tp, tcpFlags); then != hit.State || hit.State == TimeWait || hit.State == Reset {
		if tp.Proto == packet.TCP && (hit.State == TimeWait || hit.State == Reset) && pureSYN(tcpFlags) {
			hit.State = Closed
			return true
		}
		hit.State = s.advance(p, l, tp, tcpFlags)
	}
	if now := t.now.Load(); s.seen.Load() != now {
		s.seen.Store(now)
	}
	return true
}

// advance stores the state after a packet, unless the slot has got another flow meanwhile.
func (s *slot) advance(p place, l live, tp *packet.Tuple, tcpFlags uint8) State {
	for {
		then := next(l.state(), p.dir, tp, tcpFlags)
		if then == l.state() || s.swap(l, l.with(then)) {
			return then
		}
		if l = s.loadLive(); !l.of(p.seq) {
			return then
		}
	}
}

// Peek finds the flow of a packet as Lookup does, without being a sign of life: for packets that speak of others (ICMP
// errors) and for showing.
func (t *Table) Peek(tp *packet.Tuple, hit *Hit) bool {
	_, _, ok := t.get(tp, hit)
	return ok
}

// get fills hit with a consistent view of the flow of tp that is not expired.
func (t *Table) get(tp *packet.Tuple, hit *Hit) (p place, l live, ok bool) {
	h := hash(tp, t.seed)
	for {
		if p, ok = t.find(tp, h); !ok {
			return p, 0, false
		}
		s := &t.slots[p.slot]
		l = s.loadLive()
		seen, meta := s.seen.Load(), s.meta.Load()
		hit.Backend, hit.Via = s.backend.Load(), s.via.Load()
		// To is the other tuple reversed.
		w, to := &s.tuple[p.dir^1], &hit.To
		src0, src1, dst0, dst1, ports := w[2].Load(), w[3].Load(), w[0].Load(), w[1].Load(), w[4].Load()
		if s.seq.Load() != p.seq || !l.of(p.seq) {
			continue // emptied or reused under our eyes
		}
		if idle(t.now.Load(), seen) > timeouts[l.state()] {
			return p, 0, false
		}
		hit.Ref, hit.Dir, hit.Kind, hit.State, hit.Checked = ref(p.slot, p.seq), p.dir, uint8(meta>>8), l.state(), l.checked()
		setAddr(&to.Src, src0, src1)
		setAddr(&to.Dst, dst0, dst1)
		to.SrcPort, to.DstPort, to.Zone, to.Proto = uint16(ports>>16), uint16(ports), uint32(ports>>32), tp.Proto
		hit.Translate = (src0^word0(&tp.Src))|(src1^word1(&tp.Src))|(dst0^word0(&tp.Dst))|(dst1^word1(&tp.Dst)) != 0 ||
			to.SrcPort != tp.SrcPort || to.DstPort != tp.DstPort
		return p, l, true
	}
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
