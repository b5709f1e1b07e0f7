package netstack

import (
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// A backend may accept a connection and give it up before it has said or acknowledged anything more: it closed its
// socket between the client's SYN and its last ACK, or before it took the connection from its kernel. Its client has an
// open connection then, and still has everything that it has sent. So another backend takes the connection over: it is
// sent the client's SYN, and all segments from then on are shifted between its numbers and those that the client knows.
//
// A flow that was taken over has the kind TakenOver, and its shift in the place of Via: answers to attachments go by
// route anyway. While that is viaRoute, the other backend has not accepted. Until then, what the client sends is
// dropped and the SYN sent again instead: the client's kernel repeats its segments, and nobody would repeat the SYN.
// The segment that accepts goes on to the client, which has got one already and so acknowledges it once more (RFC 9293
// 3.10.7.4), as the other backend expects it, and with a fresh timestamp.
//
// Connections of routed clients are not taken over: what routers outside say about answers quotes shifted numbers.

// TakenOver is the bit of flow.Entry.Kind that marks flows which another backend has taken over from the one that the
// client has met.
const TakenOver uint8 = 2

// viaOf returns what stands in flow.Entry.Via for a shift. A clock may be a little ahead, so that it is no other value.
func viaOf(by packet.Shift) uint64 {
	if by.Seq == 0 && by.Clock <= uint32(viaHost) {
		by.Clock += uint32(viaHost) + 1
	}
	return uint64(by.Seq)<<32 | uint64(by.Clock)
}

func shiftOf(via uint64) packet.Shift {
	return packet.Shift{Seq: uint32(via >> 32), Clock: uint32(via)}
}

// accepts keeps the terms on which a backend accepts the connection of the journey's flow.
func (w *worker) accepts(s *snapshot, j *journey) {
	orig := j.hit.To.Reverse()
	if att, routed := w.path.asker(s, &orig); att != nil {
		w.path.knocks(att, routed).Answered(&orig, j.packet.Segment().Ack, j.packet.Terms())
	}
}

// takenOver sees to a packet of a flow that was taken over, or is about to be.
func (w *worker) takenOver(s *snapshot, j *journey) judgement {
	if j.takeShift() {
		return goOn
	}
	if j.hit.Dir == flow.Original {
		return w.waits(s, j)
	}
	orig, seg := j.hit.To.Reverse(), j.packet.Segment()
	att, _ := w.path.asker(s, &orig)
	if att == nil || !att.knocks.Asked(&orig, &w.syn) || !w.syn.AckedBy(seg) {
		j.drop(Moving)
		return ended
	}
	switch {
	case seg.Flags&packet.RST != 0:
		if j.hit.State = flow.Refused; !w.asksAnother(s, j) {
			w.giveUp(j, att)
			j.drop(BackendGone)
		}
		return ended
	case seg.Flags&packet.SYN == 0:
		j.drop(Moving)
		return ended
	}
	if by, ok := att.knocks.TakeOver(&orig, j.packet.Terms()); ok {
		via := viaOf(by)
		if j.hit.Ref, ok = w.path.flows.SetVia(j.hit.Ref, &orig, via); !ok {
			j.drop(Moving) // another goroutine has the same answer
			return ended
		}
		j.shift, j.hit.Translate = shiftOf(via), true
		return goOn
	}
	w.giveUp(j, att)
	j.refuse(cut, BackendGone)
	return ended
}

// takeShift takes the shift of a flow that was taken over out of j.hit, and returns false while the other backend has
// not accepted.
func (j *journey) takeShift() bool {
	if j.hit.Via == viaRoute {
		return false
	}
	j.shift, j.hit.Via, j.hit.Translate = shiftOf(j.hit.Via), viaRoute, true
	return true
}

// waits sees to what a client sends while another backend is asked to take its connection over.
func (w *worker) waits(s *snapshot, j *journey) judgement {
	flags := j.packet.TCPFlags
	att, _ := w.path.asker(s, &j.orig)
	switch {
	case packet.Opens(flags): // it has given the connection up, and begins another
		w.forget(j)
		return again
	case flags&packet.RST != 0:
		j.drop(Moving) // the other backend hears of it when it accepts
		return ended
	case att == nil || !att.knocks.Asked(&j.orig, &w.syn):
		w.forget(j)
		j.refuse(cut, BackendGone)
		return ended
	case !s.mayAccept(j):
		if !att.knocks.Refuse(&j.orig, w.syn.Seq(), j.hit.Backend, &w.syn) || !w.findsAnother(j, att) {
			w.giveUp(j, att)
			j.drop(BackendGone)
		}
		return ended
	}
	w.other = packet.Choice{Kind: packet.Picked, Backend: j.hit.Backend, To: packet.Endpoint{Addr: j.hit.To.Dst, Port: j.hit.To.DstPort}}
	j.drop(Retried) // carry sends the SYN
	return ended
}

// mayAccept reports whether the backend of the journey's flow may still accept the connection that it is asked to take
// over. What another node says of a SYN to one that is gone there is about a connection that the client has, and which
// the client does not give up for that (RFC 5461).
func (s *snapshot) mayAccept(j *journey) bool {
	state := s.balancer.Backend(j.hit.Backend, j.hit.To.Dst)
	return state == packet.BackendReady || state == packet.BackendServing
}

// enterAnew is enter for a SYN that moves a connection whose tuple has a flow. That is the SYN's own flow if it was
// sent before. If not, something that the client sent has begun it, after the flow of the connection had ended and
// before this one could begin: it was led where nobody knows the connection, and its flow goes. So does the SYN's
// own when that leaves by another node now. Nothing is done when the other backend has taken the connection over
// meanwhile.
func (w *worker) enterAnew(s *snapshot, j *journey, att *Attachment) (done, ok bool) {
	if !att.knocks.Asked(&j.orig, &w.syn) || !w.path.flows.Peek(&j.orig, &j.hit) {
		return false, false
	}
	if j.hit.Kind&TakenOver != 0 {
		if j.hit.Via != viaRoute {
			return false, false
		}
		if j.hit.To.Space == 0 || w.leads(s, j) {
			return true, true
		}
	}
	w.forget(j)
	return w.enter(s, j, w.other)
}

// giveUp ends the connection of w.syn, which nobody takes over, for its client at att. The journey is of its flow.
func (w *worker) giveUp(j *journey, att *Attachment) {
	w.forget(j)
	t, h := w.syn.Orig.Reverse(), packet.TCPHeader{Seq: w.syn.Next(), Flags: packet.RST}
	n, vnet := packet.PutTCP(w.answered[packet.HeadLen:], &t, &h, 0, 0)
	if w.answer.ParseIP(w.answered[packet.HeadLen:packet.HeadLen+n]) == packet.Good {
		w.answer.VNet = vnet
		w.write(&w.answer, att)
	}
}

// shifts changes the journey's packet between the numbers of its flow's backend and those that the client knows. Called
// again it undoes that.
func (j *journey) shifts() {
	by := j.shift
	if by == (packet.Shift{}) {
		return
	}
	if j.shifted {
		by = packet.Shift{Seq: -by.Seq, Clock: -by.Clock}
	}
	j.shifted = !j.shifted
	if j.hit.Dir == flow.Reply {
		j.packet.FromServer(by)
	} else {
		j.packet.ToServer(by)
	}
}
