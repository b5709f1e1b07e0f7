package netstack

import (
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// A UDP server of the host that listens on all addresses leaves to its kernel which address an answer leaves from. For
// pods that is the host TAP's, whichever address was asked (kubernetes/kubernetes#95565). A client would take such an
// answer for somebody else's datagram. So the answer is sent from the address that was asked: it belongs to the flow of
// the question, which the client sent to another address of this node, between the same ports. Only the host may send
// so, and only to whoever asked it.

// answersAs finds the flow of the question for an answer that the host sends from another of its addresses. It fills
// in j.hit as Lookup does. If several questions differ only in the address that was asked, one without an answer comes
// first.
func (w *worker) answersAs(s *snapshot, j *journey) bool {
	p := j.packet
	if p.Tuple.Proto != packet.UDP || j.from == nil || j.from.Kind != HostTAP || !s.isNodeAddr(p.Tuple.Src) {
		return false
	}
	t, as := p.Tuple, (*packet.Addr)(nil)
	for i := range s.own {
		if s.own[i] == p.Tuple.Src || s.own[i].Is4() != p.Tuple.Src.Is4() {
			continue
		}
		t.Src = s.own[i]
		if !w.path.flows.Peek(&t, &j.hit) || j.hit.Dir != flow.Reply {
			continue
		}
		if as == nil || j.hit.State == flow.Unreplied {
			as = &s.own[i]
		}
		if j.hit.State == flow.Unreplied {
			break
		}
	}
	if as == nil {
		return false
	}
	t.Src = *as
	if !w.path.flows.Lookup(&t, packet.Segment{}, &j.hit) || j.hit.Dir != flow.Reply {
		return false // it ended meanwhile
	}
	j.as, j.hit.Translate = as, true
	return true
}

// hears makes sure that the client of a question to a UDP server of the host hears its answers. The server may have
// sent something from another address while there was no question, or under an earlier agent. The flow of that would
// take the answers too, so it ends. A flow in which somebody answered the host is a conversation of its own, and stays.
func (w *worker) hears(s *snapshot, j *journey) {
	to := &j.hit.To
	if to.Proto != packet.UDP || j.hit.Dir != flow.Original || !s.isNodeAddr(to.Dst) {
		return
	}
	var own flow.Hit
	t := withoutSpace(to.Reverse())
	for i := range s.own {
		if s.own[i] == to.Dst || s.own[i].Is4() != to.Dst.Is4() {
			continue
		}
		t.Src = s.own[i]
		if w.path.flows.Peek(&t, &own) && own.Dir == flow.Original && own.State == flow.Unreplied {
			w.path.flows.Delete(own.Ref, &t)
		}
	}
}

// flowSource returns the source of the journey's packet, as its flow has it.
func (j *journey) flowSource() *packet.Addr {
	if j.as != nil {
		return j.as
	}
	return &j.orig.Src
}
