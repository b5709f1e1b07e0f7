package netstack

import (
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/knock"
	"tapestry.dev/tapestry/netstack/packet"
)

// A backend that ends closes its socket before all nodes have heard that it ends, and refuses what is still led to it.
// The client asked the Service, and another of its endpoints would have served it. So the node that led the client's
// SYN to the backend sends that SYN to another one, and the client does not hear of the refusal. It does, and at once,
// when there is no other backend, or knock.Most have refused. A pod of this node that is gone altogether, while the
// Balancer still leads to it, counts as one that refuses. takeover.go has what is different where the client is
// connected already.
//
// Only SYNs that attachments sent are kept. Connections of the stack (NodePort, Ingress) are tried again by those who
// make them.

// knocks returns where the SYNs of an attachment's sender are kept.
func (p *Path) knocks(att *Attachment, routed bool) *knock.Ring {
	if routed {
		return &p.outside
	}
	return &att.knocks
}

// asker returns the attachment from which a flow with this tuple began, nil if that was none, and whether a routed
// client sent it.
func (p *Path) asker(s *snapshot, orig *packet.Tuple) (att *Attachment, routed bool) {
	t := p.attachments.table.Load()
	if orig.Space == spaceRouted {
		return t.host, true
	}
	if att = t.byAddr[orig.Src]; att == nil && t.host != nil && s.mayUse(t.host, &orig.Src) {
		att = t.host
	}
	return att, false
}

// asksAnother reports whether the journey of a reset, by which a backend refuses a connection, ends here because
// another backend is asked.
func (w *worker) asksAnother(s *snapshot, j *journey) bool {
	orig := j.hit.To.Reverse()
	att, routed := w.path.asker(s, &orig)
	if att == nil {
		return false
	}
	ring, seg := w.path.knocks(att, routed), j.packet.Segment()
	if j.hit.State == flow.Abandoned {
		seg.Seq += j.shift.Seq
		return !routed && ring.Abandon(&orig, seg, j.hit.Backend, &w.syn) && w.findsAnother(j, att)
	}
	seq := seg.Ack - 1 // it acknowledges the SYN alone (RFC 9293 3.10.7.1)
	return ring.Refuse(&orig, seq, j.hit.Backend, &w.syn) && w.findsAnother(j, att)
}

// asksInstead is asksAnother for the SYN itself, whose backend is gone from this node.
func (w *worker) asksInstead(j *journey) bool {
	seq := j.packet.Segment().Seq
	return w.path.knocks(j.from, j.routed).Refuse(&j.orig, seq, j.hit.Backend, &w.syn) && w.findsAnother(j, j.from)
}

// findsAnother ends the journey if there is another backend for w.syn, and asker, who sent that, may begin one more
// flow. A pod that is refused on purpose would begin many times as many as its quota says otherwise.
func (w *worker) findsAnother(j *journey, asker *Attachment) bool {
	if w.other = w.path.another(&w.syn.Orig, w.syn.Refused()); w.other.Kind != packet.Picked || !asker.paysFlow() {
		return false
	}
	w.forget(j)
	return !j.drop(Retried) // carry sends the SYN
}

// askAnother sends w.syn to w.other. The SYN was admitted when it came. nested says that the stack sent what it is
// asked for.
func (w *worker) askAnother(s *snapshot, nested bool) {
	p := &w.latePacket
	att, routed := w.path.asker(s, &w.syn.Orig)
	if att == nil || p.ParseIP(w.syn.IP()) != packet.Good {
		return
	}
	p.VNet, p.Tuple.Space = w.syn.VNet, w.syn.Orig.Space
	j := journey{packet: p, origin: origin{from: att, routed: routed, nested: nested}, orig: p.Tuple, takes: w.syn.Moving()}
	done, ok := w.enter(s, &j, w.other)
	if !done && j.takes {
		done, ok = w.enterAnew(s, &j, att)
	}
	if !done {
		return // the client has sent its SYN again, which another goroutine carries
	}
	if ok {
		_ = w.translate(s, &j) && w.forward(s, &j)
	}
	w.carry(s, &j)
	if j.takes && (j.verdict == Answered || j.verdict == Dropped && j.reason != Retried) {
		w.giveUp(&j, att)
	}
	w.count(j.verdict, j.reason)
	if w.path.observer != nil && (j.begun || j.reason != NotDropped) {
		w.tell(s, &j)
	}
}
