package netstack

import (
	"slices"

	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// What a pod sends to the outside leaves over host sockets, or as the exit table says, as a packet by the host TAP of
// this node or another one. The flow remembers which: of one that leaves by the host TAP, the space of the answers is
// that of routed clients, since the host's kernel brings them as it brings what those send. Of one that leaves by
// another node, it is that peer's. The flow goes on where it began for as long as that is right. What the host TAP
// brings never leaves again: it is of the host, of routed clients, or an answer.
//
// A pod with an egress address gets it as its source on the pod's own node, which alone knows the pods. The gateway,
// which alone announces the address, takes packets from it out of the tunnel and gives the flow a port of its own,
// since pods of several nodes share the address. So each flow is translated on both, and neither asks the other. On
// both, its port is charged to whoever began it: to the pod, and to the pod's node. When another node becomes the
// gateway, the pod's node hands the flow over (handover.go).

// SetExits replaces how packets leave; nil means over host sockets. Flows that began on another way end at their next
// packet. Attachments that come later go by t from the beginning.
func (p *Path) SetExits(t *exit.Table) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exits.Store(t)
	for _, att := range p.attachments.table.Load().byName {
		p.lead(att)
	}
	p.handover.Changed()
}

// lead brings the attachment's egress address into force. The caller holds p.mu.
func (p *Path) lead(att *Attachment) {
	if att.Kind == PodTAP {
		att.exit.Store(p.exits.Load().Pod(att.Name))
	}
}

// leaves reports whether what sent the packet may send to the outside by the exit table.
func (j *journey) leaves() bool {
	return j.from != nil && j.from.Kind == PodTAP || j.leaving
}

// leave sets the way of a new flow of a pod to the outside. It returns false when the flow may not be, and ends the
// journey.
func (w *worker) leave(s *snapshot, j *journey) bool {
	if !j.leaves() {
		return true
	}
	to := &j.hit.To
	e := w.exitOf(s, j, to)
	switch e.Way {
	case exit.Sockets:
		return true
	case exit.Unsettled:
		return j.drop(NoExit) // the sender tries again
	}
	if s.denied.has(to) {
		return j.refuse(denied, EgressDenied)
	}
	space, via, ok := w.by(s, &e, to)
	if !ok {
		return j.refuse(prohibited, NoExit)
	}
	if j.packet.TCPFlags&packet.RST != 0 && e.Src != to.Src {
		return j.drop(NoExit) // a stray reset begins no flow, and without one would show the pod's own address
	}
	to.Src, to.Space, j.via = e.Src, space, via
	if j.moved {
		if to.SrcPort = j.port; to.Proto == packet.ICMPv4 || to.Proto == packet.ICMPv6 {
			to.DstPort = j.port // an echo has one number for both
		}
	}
	return true
}

// routes reports whether the host TAP att, which may be nil, takes packets of t to the outside: the host's kernel
// routes the families of which it has an address there.
func (att *Attachment) routes(t *packet.Tuple) bool {
	return att != nil && slices.ContainsFunc(att.addrs, func(a packet.Addr) bool { return a.Is4() == t.Dst.Is4() })
}

// exitOf returns how the journey's packets leave that have become t; the Way is Sockets also when they stay in the
// cluster.
func (w *worker) exitOf(s *snapshot, j *journey, t *packet.Tuple) (e exit.Exit) {
	exits := w.path.exits.Load()
	if j.leaving {
		e = exits.From(j.orig.Src)
	} else {
		e = exits.Of(j.from.exit.Load(), t.Dst)
	}
	if e.Way == exit.Sockets || w.path.route(s, &t.Dst).kind != outside {
		return exit.Exit{}
	}
	if e.Src == (packet.Addr{}) {
		e.Src = j.orig.Src
	}
	if j.leaving && e.Way == exit.ToPeer {
		e.Way = exit.Nowhere // never from one peer to another
	}
	return e
}

// by returns the space of answers and the way of packets of t with such an exit; ok is false when there is none. While
// nobody has said which the way is, it is that of the space of t, in which the flow remembers it.
func (w *worker) by(s *snapshot, e *exit.Exit, t *packet.Tuple) (space uint32, via uint64, ok bool) {
	way, p := e.Way, (*peer)(nil)
	switch {
	case way == exit.ToPeer:
		p = s.peers[e.Peer]
	case way == exit.Unsettled && t.Space == spaceRouted:
		way = exit.HostTAP
	case way == exit.Unsettled:
		p = s.spaces[t.Space]
	}
	switch {
	case way == exit.HostTAP:
		return spaceRouted, viaHost, w.path.attachments.table.Load().host.routes(t)
	case p != nil && p.encap != nil:
		return p.space, p.ID, true
	}
	return 0, 0, false
}

// stands reports whether a known flow whose packet gets a space goes on. Answers to somebody who has a space do. A flow
// that leaves as a packet does while that is its way; otherwise it is deleted, so that the packet begins another.
func (w *worker) stands(s *snapshot, j *journey) bool {
	if j.hit.Dir == flow.Reply || w.leads(s, j) {
		return true
	}
	if j.leaves() && w.exitOf(s, j, &j.hit.To).Src == j.hit.To.Src {
		j.moved, j.port, w.kept = true, j.hit.To.SrcPort, chosen(&j.hit)
	}
	w.forget(j)
	return false
}

// leads sets the way of the journey's flow, which leaves as a packet, and reports whether it still is its way.
func (w *worker) leads(s *snapshot, j *journey) bool {
	if !j.leaves() {
		return false
	}
	e := w.exitOf(s, j, &j.hit.To)
	space, via, ok := w.by(s, &e, &j.hit.To)
	if !ok || space != j.hit.To.Space || e.Src != j.hit.To.Src || s.denied.has(&j.hit.To) {
		return false
	}
	j.via = via
	return true
}

// chosen returns what the Balancer chose for a known flow whose packet goes on from its first end.
func chosen(h *flow.Hit) packet.Choice {
	if h.Backend == 0 {
		return packet.Choice{}
	}
	return packet.Choice{
		Kind: packet.Picked, Backend: h.Backend, To: packet.Endpoint{Addr: h.To.Dst, Port: h.To.DstPort}, Counted: h.Kind&Counted != 0,
	}
}

// strays reports whether the journey's packet is of a flow that began over host sockets, and now has to leave in
// another way; if so, it ends the flow and the journey. The server outside would not know the pod's address.
func (w *worker) strays(s *snapshot, j *journey) bool {
	if w.exitOf(s, j, &j.packet.Tuple).Way == exit.Sockets {
		return false
	}
	if !j.begun && j.quoted == nil && j.packet.Frag != packet.LaterFrag {
		w.forget(j)
	}
	if j.packet.Tuple.Proto.Connects() && j.packet.Frag == packet.NoFrag && j.packet.TCPFlags&(packet.SYN|packet.RST) == 0 {
		j.refuse(cut, NoExit)
	} else {
		j.drop(NoExit)
	}
	return true
}

// admitExit reports whether an encapsulated packet is of a peer's pod that leaves by this node, or an answer to a pod
// of this node that left by the peer. The peer's word on which of its pods use an address is taken; the peer's space
// keeps it from flows that left by others.
func (w *worker) admitExit(s *snapshot, j *journey) bool {
	exits, t := w.path.exits.Load(), &j.packet.Tuple
	if exits == nil {
		return false
	}
	switch {
	case exits.Has(t.Src):
		if way := exits.From(t.Src).Way; way != exit.HostTAP && way != exit.Unsettled || w.path.route(s, &t.Dst).kind != outside {
			return false
		}
		if j.leaving = true; j.packet.IsNotice() {
			j.notice = noticed(j.packet)
		}
	case !exits.Has(t.Dst) || s.claims(t.Src) || noClient(&t.Src):
		return false
	default:
		j.answers = true
	}
	t.Space = j.sender.space
	return true
}
