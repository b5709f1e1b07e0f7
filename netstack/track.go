package netstack

import (
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// track finds the packet's flow or makes one, and translates the packet by it. It returns where the flow's binding sends
// the packet, viaRoute for by its destination.
//
// Insert is atomic: when two packets of a new flow race, the loser finds the winner's entry in the next round.
func (w *worker) track(s *snapshot, p *packet.Packet, o *origin) (via uint64, v Verdict, r DropReason) {
	w.orig = p.Tuple
	for range 4 {
		if w.node.flows.Lookup(&p.Tuple, p.TCPFlags, &w.hit) {
			switch w.judge(s, p) {
			case goOn:
				if w.hit.Translate {
					p.Rewrite(&w.hit.To)
				}
				if w.hit.Dir == flow.Reply {
					return w.hit.Via, 0, NotDropped
				}
				return viaRoute, 0, NotDropped
			case reset:
				v, r = w.reset(p, o, BackendGone)
				return viaRoute, v, r
			case again:
			}
		}
		e := &w.entry
		if v, r = w.begin(s, p, o, e); r != NotDropped {
			return viaRoute, v, r
		}
		if p.TCPFlags&packet.RST != 0 && e.Backend == 0 && e.Via == viaRoute {
			return viaRoute, 0, NotDropped // a stray reset begins nothing
		}
		_, result := w.node.flows.Insert(e)
		switch result {
		case flow.Inserted:
			if to := e.Reply.Reverse(); to != withoutZone(p.Tuple) {
				p.Rewrite(&to)
			}
			return viaRoute, 0, NotDropped
		case flow.Full:
			return viaRoute, Dropped, FlowsFull
		case flow.NoPort:
			return viaRoute, Dropped, NoSourcePort
		}
	}
	return viaRoute, Dropped, FlowsFull
}

func withoutZone(t packet.Tuple) packet.Tuple {
	t.Zone = 0
	return t
}

// judgement is what to do with a packet whose flow is known.
type judgement uint8

const (
	goOn  judgement = iota
	again           // the flow was dropped: begin a new one
	reset           // the flow was dropped: tell the sender
)

// judge decides whether a flow may go on. The backend is looked at only when the Table changed since the last time.
func (w *worker) judge(s *snapshot, p *packet.Packet) judgement {
	h := &w.hit
	opening := p.TCPFlags&(packet.SYN|packet.ACK|packet.RST) == packet.SYN
	if opening && h.State == flow.Closed {
		orig := w.orig
		if h.Dir == flow.Reply {
			orig = h.To.Reverse()
		}
		w.node.flows.Delete(h.Ref, &orig)
		return again
	}
	if h.Backend == 0 || h.Dir == flow.Reply || h.Checked == s.generation {
		return goOn
	}
	state := s.balancer.Backend(h.Backend)
	switch {
	case state == packet.BackendReady,
		(state == packet.BackendDraining || s.judgedAt(&h.To.Dst)) && p.Tuple.Proto == packet.TCP && !(opening && h.State == flow.SynSent):
		w.node.flows.SetChecked(h.Ref, s.generation)
		return goOn
	}
	w.node.flows.Delete(h.Ref, &w.orig)
	if p.Tuple.Proto == packet.TCP && !opening {
		return reset
	}
	return again
}

// begin fills in the entry of a new flow.
func (w *worker) begin(s *snapshot, p *packet.Packet, o *origin, e *flow.Entry) (Verdict, DropReason) {
	*e = flow.Entry{Orig: p.Tuple, TCPFlags: p.TCPFlags, Checked: s.generation}
	to := withoutZone(p.Tuple)
	if choice := w.pick(s, p, o); choice.Kind != packet.NotFrontend {
		switch choice.Kind {
		case packet.Picked:
			to.Dst, to.DstPort = choice.To.Addr, choice.To.Port
			e.Backend = choice.Backend
		case packet.NoEndpoints:
			return w.refuse(p, o, packet.PortUnreachable, NoEndpoints)
		case packet.UnknownPort:
			return w.refuse(p, o, packet.PortUnreachable, UnknownPort)
		case packet.DropLocal:
			return Dropped, LocalPolicy
		case packet.DropSource:
			return Dropped, SourceRange
		}
	}
	if w.mustMasquerade(s, &to, o) {
		gate, ok := s.gateway(&to.Src)
		if !ok {
			return Dropped, NoRoute
		}
		to.Src = gate
	}
	e.Reply = to.Reverse()
	switch {
	case o.fromGateway():
		e.Via = viaGateway
	case o.wrapped:
		e.Via = o.peer.ID
	}
	return 0, NotDropped
}

// pick asks the Balancer. Translation happens once, on the node where the flow enters, but for host ports: the one node that
// knows of them is the one whose address it is, and they lead to its own pods only.
func (w *worker) pick(s *snapshot, p *packet.Packet, o *origin) packet.Choice {
	if o.peer == nil {
		return s.balancer.Pick(&p.Tuple)
	}
	if o.wrapped || !s.isNodeAddr(p.Tuple.Dst) {
		return packet.Choice{}
	}
	choice := s.balancer.Pick(&p.Tuple)
	if choice.Kind == packet.Picked && w.node.ports.table.Load().byAddr[choice.To.Addr] == nil {
		return packet.Choice{}
	}
	return choice
}

// mustMasquerade tells the flows whose backend must see the gateway's address instead of the sender's: what goes back
// into the Port it came from (a kernel drops packets from its own address as martians), and clients of ours whose answers
// could not come back from a node that takes no encapsulated packets.
func (w *worker) mustMasquerade(s *snapshot, to *packet.Tuple, o *origin) bool {
	r := w.route(s, &to.Dst)
	if o.port != nil {
		return r.port == o.port
	}
	return o.fromGateway() && r.kind == toPeer && r.peer.encap == nil && s.foreign(to.Src)
}

// related translates an ICMP error by the flow of the packet it quotes (RFC 5508) and forwards it.
func (w *worker) related(s *snapshot, p *packet.Packet, o *origin) (Verdict, DropReason) {
	in := &w.inner
	if !p.Embedded(in) {
		return Dropped, Malformed
	}
	w.orig = p.Tuple
	t := in.Tuple.Reverse()
	t.Zone = p.Tuple.Zone
	if !w.node.flows.Lookup(&t, 0, &w.hit) {
		if o.peer == nil && o.port == nil {
			return Dropped, NoRoute
		}
		if r := w.route(s, &p.Tuple.Dst); r.kind != toPod && r.kind != toPeer {
			return Dropped, NoRoute
		}
		return w.forward(s, p, o, viaRoute)
	}
	via := viaRoute
	if w.hit.Dir == flow.Reply {
		via = w.hit.Via
	}
	if w.hit.Translate {
		quoted := w.hit.To.Reverse()
		src := p.Tuple.Src
		if src == in.Tuple.Dst {
			src = w.hit.To.Src // the target itself complains: it goes by its frontend's address
		}
		p.RewriteEmbedded(src, w.hit.To.Dst, &quoted)
	}
	return w.forward(s, p, o, via)
}
