package netstack

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// ICMP types that the pipeline looks at (RFC 792, RFC 1256, RFC 4443, RFC 4861).
const (
	icmpRedirect4     = 5
	icmpRouterAd4     = 9
	icmpRouterSol4    = 10
	ndpFirst, ndpLast = 133, 137 // router and neighbour solicitations and advertisements, redirects
	ndpSolicitation   = 135
)

// isLinkOnly reports whether p is a message that hosts believe from a neighbour on their link. A pod's only neighbour
// is the router: anybody else who sent such messages could make itself the pod's router or neighbour.
func isLinkOnly(p *packet.Packet) bool {
	switch p.Tuple.Proto {
	case packet.ICMPv4:
		return p.ICMPType == icmpRedirect4 || p.ICMPType == icmpRouterAd4 || p.ICMPType == icmpRouterSol4
	case packet.ICMPv6:
		return p.ICMPType >= ndpFirst && p.ICMPType <= ndpLast
	}
	return false
}

// isICMPError reports whether p is an ICMP error, which quotes a packet, and not a query.
func isICMPError(p *packet.Packet) bool {
	if p.Frag == packet.LaterFrag {
		return false
	}
	switch p.Tuple.Proto {
	case packet.ICMPv4:
		return p.ICMPType == 3 || p.ICMPType == 4 || p.ICMPType == 11 || p.ICMPType == 12
	case packet.ICMPv6:
		return p.ICMPType < 128
	}
	return false
}

func isMulticast(a *packet.Addr) bool {
	return a[0] == 0xff || a[12] >= 224 && a.Is4() // class E and broadcast as well: the cluster uses no such addresses
}

func isLinkLocal(a *packet.Addr) bool {
	return !a.Is4() && (a[0] == 0xfe && a[1]&0xc0 == 0x80 || *a == packet.Addr{})
}

// answerARP answers an ARP request for any address: the router is the pods' only neighbour.
func (w *worker) answerARP(p *packet.Packet, buf []byte) (Verdict, DropReason) {
	if p.EtherType != packet.EtherARP {
		return Dropped, NotIP
	}
	if m := w.from.meter.Load(); m != nil && !m.Packet(1) {
		return Dropped, OverPackets
	}
	n := packet.AnswerARP(buf, tap.RouterMAC)
	if n == 0 {
		return Dropped, NotIP
	}
	if w.from.dev.Write(buf[:n]) != nil {
		return Dropped, TAPDown
	}
	return Answered, NotDropped
}

// reply sends the answer that the steps decided on. Where no answer may be sent, the packet is dropped.
func (w *worker) reply(s *snapshot, j *journey) {
	if j.answer == neighbor {
		w.answerNS(j)
		return
	}
	p := j.packet
	if p.Tuple != j.orig && p.Frag != packet.LaterFrag && j.quoted == nil {
		p.Rewrite(&j.orig) // the sender must recognise its own packet
	}
	if j.shifted {
		j.shifts()
	}
	whole := p.Tuple.Proto.Connects() && p.Frag == packet.NoFrag
	n := 0
	switch {
	case j.answer == cut, whole && (j.answer == refused || j.answer == denied):
		n = putReset(w.answered[packet.HeadLen:], p)
	case w.path.refusals.Allow(j.answeree()):
		n = w.putError(s, j)
	}
	if n == 0 {
		j.verdict = Dropped
		return
	}
	w.sendBack(j, n)
}

// putReset writes the packet that ends or refuses the connection of p, and returns its length, 0 for none.
func putReset(dst []byte, p *packet.Packet) int {
	if p.Tuple.Proto == packet.SCTP {
		return packet.PutAbort(dst, p)
	}
	return packet.PutRST(dst, p)
}

// answeree returns who is charged for an error that the journey's sender gets: the peer, for all who send through it.
func (j *journey) answeree() packet.Addr {
	if j.sender != nil {
		return j.sender.owner
	}
	return j.orig.Src
}

// putError writes the ICMP error that is j's answer to w.answered, after the room for a head, and returns its length, 0
// for none.
func (w *worker) putError(s *snapshot, j *journey) int {
	p := j.packet
	from, kind := p.Tuple.Dst, packet.PortUnreachable
	// Networks outside may carry no packet from a pod range, and the node of a pod that leaves by this one expects
	// answers from outside.
	if j.answer != refused && !j.routed && !j.leaving {
		stackAddr, ok := s.stackAddr(&p.Tuple.Src)
		if !ok {
			return 0
		}
		from = stackAddr
	}
	switch j.answer {
	case noNet:
		kind = packet.NetUnreachable
	case noHost:
		kind = packet.HostUnreachable
	case prohibited, denied:
		kind = packet.AdminProhibited
	case tooBig:
		kind = packet.TooBig
	}
	return packet.PutICMPError(w.answered[packet.HeadLen:], p, kind, from, int(j.mtu))
}

// sendBack sends the IP packet of n bytes in w.answered to where the journey's packet came from.
func (w *worker) sendBack(j *journey, n int) {
	a := &w.answer
	if a.ParseIP(w.answered[packet.HeadLen:packet.HeadLen+n]) != packet.Good {
		j.verdict = Dropped
		return
	}
	switch {
	case j.from != nil:
		a.PutHead(w.answered[:], tap.RouterMAC, j.from.MAC)
		if j.from.dev.Write(w.answered[:packet.HeadLen+n]) != nil {
			j.drop(TAPDown)
		}
	case j.wrapped:
		w.path.link.Send(a, j.sender.ID, j.sender.encap)
	case j.sender != nil:
		w.path.link.Send(a, j.sender.ID, nil)
	default:
		w.path.stack.Deliver(a, &w.turn, true)
	}
}

// answerNS answers a neighbour solicitation for any address, as answerARP does for ARP.
func (w *worker) answerNS(j *journey) {
	p := j.packet
	n := packet.AnswerNS(p, tap.RouterMAC)
	switch {
	case n == 0:
		j.drop(LinkOnly) // usually a probe for duplicate addresses
	case j.from.dev.Write(p.Buf[:n]) != nil:
		j.drop(TAPDown)
	}
}
