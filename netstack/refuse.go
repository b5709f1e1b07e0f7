package netstack

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// ICMP types the pipeline looks at (RFC 792, RFC 1256, RFC 4443, RFC 4861).
const (
	icmpRedirect4     = 5
	icmpRouterAd4     = 9
	icmpRouterSol4    = 10
	ndpFirst, ndpLast = 133, 137 // router and neighbour solicitations and advertisements, redirects
	ndpSolicitation   = 135
)

// isLinkOnly tells messages that hosts believe of their neighbours on a link, who are nobody here but the router:
// whoever else sends them would make itself a pod's router or neighbour.
func isLinkOnly(p *packet.Packet) bool {
	switch p.Tuple.Proto {
	case packet.ICMPv4:
		return p.ICMPType == icmpRedirect4 || p.ICMPType == icmpRouterAd4 || p.ICMPType == icmpRouterSol4
	case packet.ICMPv6:
		return p.ICMPType >= ndpFirst && p.ICMPType <= ndpLast
	}
	return false
}

// isICMPError tells errors, which quote a packet, from queries.
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
	return a[0] == 0xff || a[12] >= 224 && a.Is4() // with class E and broadcast: nobody of ours lives there
}

func isLinkLocal(a *packet.Addr) bool {
	return !a.Is4() && (a[0] == 0xfe && a[1]&0xc0 == 0x80 || *a == packet.Addr{})
}

// answerARP answers for every address: the router is the pods' only neighbour.
func (w *worker) answerARP(p *packet.Packet, buf []byte) (Verdict, DropReason) {
	if p.EtherType != packet.EtherARP {
		return Dropped, NotIP
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

// reply sends the answer that the steps decided on. Where none may be sent, the packet is dropped.
func (w *worker) reply(s *snapshot, j *journey) {
	if j.answer == neighbor {
		w.answerNS(j)
		return
	}
	p := j.packet
	if p.Tuple != j.orig && p.Frag != packet.LaterFrag && j.quoted == nil {
		p.Rewrite(&j.orig) // the sender must recognise its own packet
	}
	whole := p.Tuple.Proto == packet.TCP && p.Frag == packet.NoFrag
	n := 0
	switch {
	case j.answer == cut, whole && (j.answer == refused || j.answer == denied):
		n = packet.PutRST(w.answered[packet.HeadLen:], p)
	case w.path.refusals.Allow(j.answeree()):
		n = w.putError(s, j)
	}
	if n == 0 {
		j.verdict = Dropped
		return
	}
	w.sendBack(j, n)
}

// answeree is who is charged for an error that the journey's sender is sent: a peer for all who send through it.
func (j *journey) answeree() packet.Addr {
	if j.sender != nil {
		return j.sender.owner
	}
	return j.orig.Src
}

// putError writes the ICMP error that is j's answer to w.reply and returns its length, 0 for none.
func (w *worker) putError(s *snapshot, j *journey) int {
	p := j.packet
	from, kind := p.Tuple.Dst, packet.PortUnreachable
	if j.answer != refused {
		gate, ok := s.stackAddr(&p.Tuple.Src)
		if !ok {
			return 0
		}
		from = gate
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

// sendBack sends the n bytes of IP packet in w.reply to where the journey's packet came from.
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

// answerNS answers a neighbour solicitation for every address, as answerARP does.
func (w *worker) answerNS(j *journey) {
	p := j.packet
	n := packet.AnswerNS(p, tap.RouterMAC)
	switch {
	case n == 0:
		j.drop(LinkOnly) // a probe for duplicates, as a rule
	case j.from.dev.Write(p.Buf[:n]) != nil:
		j.drop(TAPDown)
	}
}
