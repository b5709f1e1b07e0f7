package netstack

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// ICMP types the pipeline looks at (RFC 792, RFC 4443, RFC 4861).
const (
	ndpSolicitation = 135
	icmpEcho4       = 8
	icmpEcho6       = 128
)

// isICMPError tells errors, which quote a packet, from queries.
func isICMPError(p *packet.Packet) bool {
	if p.Frag == packet.LaterFrag {
		return false
	}
	switch p.Tuple.Proto {
	case packet.ICMPv4:
		return p.ICMPType == 3 || p.ICMPType == 4 || p.ICMPType == 5 || p.ICMPType == 11 || p.ICMPType == 12
	case packet.ICMPv6:
		return p.ICMPType < 128
	}
	return false
}

func isEcho(p *packet.Packet) bool {
	return p.Tuple.Proto == packet.ICMPv4 && p.ICMPType == icmpEcho4 ||
		p.Tuple.Proto == packet.ICMPv6 && p.ICMPType == icmpEcho6
}

func isMulticast(a *packet.Addr) bool {
	if a.Is4() {
		return a[12] >= 224 // with class E and broadcast: nobody of ours lives there
	}
	return a[0] == 0xff
}

func isLinkLocal(a *packet.Addr) bool {
	return !a.Is4() && (a[0] == 0xfe && a[1]&0xc0 == 0x80 || *a == packet.Addr{})
}

// answerARP answers for every address: the gateway is the pods' only neighbour.
func (w *worker) answerARP(p *packet.Packet, buf []byte) (Verdict, DropReason) {
	if p.EtherType != packet.EtherARP {
		return Dropped, NotIP
	}
	n := packet.AnswerARP(buf, tap.GatewayMAC)
	if n == 0 {
		return Dropped, NotIP
	}
	if w.port.dev.Write(buf[:n]) != nil {
		return Dropped, PortDown
	}
	return Answered, NotDropped
}

func (w *worker) answerNS(p *packet.Packet, o *origin) (Verdict, DropReason, bool) {
	n := packet.AnswerNS(p, tap.GatewayMAC)
	if n == 0 {
		return Dropped, Multicast, true
	}
	if o.port.dev.Write(p.Buf[:n]) != nil {
		return Dropped, PortDown, true
	}
	return Answered, NotDropped, true
}

// refuse answers a packet that cannot be served so that the sender knows at once: a reset for TCP, else an ICMP error.
func (w *worker) refuse(p *packet.Packet, o *origin, e packet.ICMPError, why DropReason) (Verdict, DropReason) {
	if p.Tuple.Proto == packet.TCP && p.Frag == packet.NoFrag && e == packet.PortUnreachable {
		return w.reset(p, o, why)
	}
	if !w.node.refusals.Allow() {
		return Dropped, why
	}
	from := p.Tuple.Dst
	if e != packet.PortUnreachable {
		s := w.node.snapshot.Load()
		gate, ok := s.gateway(&p.Tuple.Src)
		if !ok {
			return Dropped, why
		}
		from = gate
	}
	return w.sendBack(o, packet.PutICMPError(w.reply[packet.HeadLen:], p, e, from, 0), why)
}

// reset tells the sender of a TCP packet that its connection is gone: so is whom it was with.
func (w *worker) reset(p *packet.Packet, o *origin, why DropReason) (Verdict, DropReason) {
	return w.sendBack(o, packet.PutRST(w.reply[packet.HeadLen:], p), why)
}

// tooBig answers with the size that fits. The sender must recognise its own packet, so the translation is undone first.
func (w *worker) tooBig(s *snapshot, p *packet.Packet, o *origin, mtu int) (Verdict, DropReason) {
	gate, ok := s.gateway(&p.Tuple.Src)
	if !ok || !w.node.refusals.Allow() {
		return Dropped, TooBig
	}
	if p.Tuple != w.orig && p.Frag != packet.LaterFrag {
		p.Rewrite(&w.orig)
	}
	return w.sendBack(o, packet.PutICMPError(w.reply[packet.HeadLen:], p, packet.TooBig, gate, mtu), TooBig)
}

// sendBack sends the n bytes of IP packet in w.reply to where o came from.
func (w *worker) sendBack(o *origin, n int, why DropReason) (Verdict, DropReason) {
	if n == 0 {
		return Dropped, why
	}
	a := &w.answer
	if a.ParseIP(w.reply[packet.HeadLen:packet.HeadLen+n]) != packet.Good {
		return Dropped, why
	}
	switch {
	case o.port != nil:
		a.PutHead(w.reply[:], tap.GatewayMAC, o.port.MAC)
		if o.port.dev.Write(w.reply[:packet.HeadLen+n]) != nil {
			return Dropped, PortDown
		}
	case o.wrapped:
		w.node.link.Send(a, o.peer.ID, o.peer.encap)
	case o.peer != nil:
		w.node.link.Send(a, o.peer.ID, nil)
	default:
		w.node.gateway.Deliver(a, &w.turn, true)
	}
	return Answered, why
}
