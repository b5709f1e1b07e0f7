package netstack

import (
	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/handover"
	"tapestry.dev/tapestry/netstack/packet"
)

// When the gateway of an egress address changes, package handover goes through the flows of the address, each of which
// handOver moves and tells the next gateway of, by a notice: a packet that the gateway enters into its flow table as
// the flow's own, and does not send on. So what the server says next finds its way, though the pod says nothing.

// noticed returns the state of the flow that a notice tells of. Nodes tell only of those that were answered.
func noticed(p *packet.Packet) flow.State {
	switch {
	case p.Tuple.Proto == packet.UDP:
		return flow.Replied
	case p.TCPFlags&packet.FIN != 0:
		return flow.FinOriginal
	}
	return flow.Established
}

// handOver is handover.Options.Tell.
func (p *Path) handOver(orig *packet.Tuple) (told bool) {
	s, att := p.snapshot.Load(), p.attachments.table.Load().byAddr[orig.Src]
	if s == nil || att == nil {
		return false
	}
	w := p.workers.get()
	defer p.workers.put(w)
	return w.handOver(s, &journey{packet: &w.latePacket, origin: origin{from: att}, orig: *orig})
}

// handOver takes the journey's flow to its gateway, and reports whether it has told that of it. A flow whose address
// has no gateway now stays as it is: there may be one again before its pod sends something.
func (w *worker) handOver(s *snapshot, j *journey) bool {
	if !w.path.flows.Peek(&j.orig, &j.hit) || j.hit.Dir != flow.Original || j.hit.To.Space == 0 || !handover.Waits(j.hit.State) {
		return false
	}
	j.notice = j.hit.State
	e := w.exitOf(s, j, &j.hit.To)
	if e.Way != exit.HostTAP && e.Way != exit.ToPeer || e.Src != j.hit.To.Src {
		return false
	}
	if _, _, ok := w.by(s, &e, &j.hit.To); !ok {
		return false
	}
	if j.hit.Kind&TakenOver != 0 && !j.takeShift() {
		return false
	}
	told := w.putNotice(j)
	if !w.stands(s, j) {
		if done, ok := w.enter(s, j, w.kept); !done || !ok {
			return false
		}
		if w.path.observer != nil {
			w.tell(s, j)
		}
	}
	if !told || j.via == viaHost {
		return false // what is here needs no telling
	}
	_ = w.translate(s, j) && w.forward(s, j)
	w.carry(s, j)
	w.count(j.verdict, j.reason)
	return true
}

// putNotice makes the journey's packet a notice of its flow, as the pod would send it. It returns false when there is
// none of the flow's protocol.
func (w *worker) putNotice(j *journey) bool {
	n := packet.PutNotice(w.answered[packet.HeadLen:], &j.orig, j.notice == flow.FinOriginal)
	if n == 0 {
		*j.packet = packet.Packet{Tuple: j.orig}
		return false
	}
	return j.packet.ParseIP(w.answered[packet.HeadLen:packet.HeadLen+n]) == packet.Good
}
