package netstack

import (
	"tapestry.dev/tapestry/netstack/packet"
)

// fromTAP takes one superframe from the worker's attachment. It returns the buffer to read the next one into.
func (w *worker) fromTAP(buf []byte) []byte {
	p := &w.pkt
	switch fault := p.ParseFrame(buf); fault {
	case packet.Good:
		w.took(len(p.IP))
		w.walkNow(&journey{packet: p, origin: origin{from: w.from}})
		return p.Buf[:cap(p.Buf)] // the Link may have exchanged it
	case packet.NotIP:
		w.count(w.answerARP(p, buf))
	default:
		w.count(Dropped, faultReason(fault))
	}
	return buf[:cap(buf)]
}

func faultReason(f packet.Fault) DropReason {
	switch f {
	case packet.NotIP:
		return NotIP
	case packet.BadOffload:
		return BadOffload
	}
	return Malformed
}

// fromStack takes one superframe that the node's stack sent. It returns a buffer in exchange.
func (w *worker) fromStack(buf []byte) []byte {
	p := &w.pkt
	if fault := p.ParseFrame(buf); fault != packet.Good {
		w.count(Dropped, faultReason(fault))
		return buf[:cap(buf)]
	}
	w.walkNow(&journey{packet: p})
	return p.Buf[:cap(p.Buf)]
}

// fromRelay takes one packet that a relay made without gVisor's stack.
func (w *worker) fromRelay(ip []byte, vnet packet.VNetHdr) {
	p := &w.pkt
	if fault := p.ParseIP(ip); fault != packet.Good {
		w.count(Dropped, faultReason(fault))
		return
	}
	p.VNet = vnet
	w.walkNow(&journey{packet: p, origin: origin{paced: p.Tuple.Proto == packet.TCP}})
}

// walkNow walks a packet of this node through the newest snapshot.
func (w *worker) walkNow(j *journey) {
	s := w.path.snapshot.Load()
	if s == nil {
		w.count(Dropped, NotReady)
		return
	}
	w.walk(s, j)
}

// fromLink takes a decrypted batch of one peer. It first coalesces the packets of each flow, so that every later step
// is paid once for many packets.
func (w *worker) fromLink(id uint64, batch [][]byte) {
	s := w.path.snapshot.Load()
	if s == nil {
		w.drops[NotReady].Add(uint64(len(batch)))
		w.verdicts[Dropped].Add(uint64(len(batch)))
		return
	}
	peer := s.peers[id]
	if peer == nil {
		w.drops[SpoofedPeer].Add(uint64(len(batch)))
		w.verdicts[Dropped].Add(uint64(len(batch)))
		return
	}
	w.plain.Reset()
	w.wrapped.Reset()
	w.joined = w.joined[:0]
	w.plain.Partial, w.wrapped.Partial = peer.SendsPartial, peer.SendsPartial
	wrapped := false
	for _, ip := range batch {
		into := &w.plain
		// Only what goes from stack address to stack address is the nodes' own; pods may have tunnels of their own.
		if inner, outer, ok := packet.Inner(ip); ok && s.isOwnStack(outer.Dst) && peer.isStack(outer.Src) {
			if !packet.CopyMark(ip, inner) {
				w.count(Dropped, BadEncap)
				continue
			}
			ip, into, wrapped = inner, &w.wrapped, true
		}
		if packet.IsCut(ip) {
			if ip = w.join(peer, ip); ip == nil {
				continue
			}
		}
		if fault := into.Add(ip); fault != packet.Good {
			w.count(Dropped, faultReason(fault))
		}
	}
	// Encapsulated packets are few, and the space in which they are looked up is set later; so they are not prefetched.
	if several := w.plain.Pending(); len(several) > 1 {
		w.path.flows.Prefetch(several)
	}
	for p := w.plain.Next(); p != nil; p = w.plain.Next() {
		w.walk(s, &journey{packet: p, origin: origin{sender: peer, service: isSYN(p) && p.TakeServiceMark()}})
	}
	if !wrapped {
		return
	}
	for p := w.wrapped.Next(); p != nil; p = w.wrapped.Next() {
		w.walk(s, &journey{packet: p, origin: origin{sender: peer, wrapped: true, service: isSYN(p)}})
	}
}

// isSYN reports whether p opens a TCP connection.
func isSYN(p *packet.Packet) bool {
	return packet.Opens(p.TCPFlags) && p.Tuple.Proto == packet.TCP && p.Frag == packet.NoFrag
}

// admit is the step that checks whether the sender may use the source address. It also drops what is not forwarded at
// all.
func (w *worker) admit(s *snapshot, j *journey) bool {
	p := j.packet
	src, dst := &p.Tuple.Src, &p.Tuple.Dst
	switch {
	case j.from != nil:
		// Whatever a pod sends costs something, also what is dropped next or answered here.
		if m := j.from.meter.Load(); m != nil && !j.pays(m) {
			return false
		}
		if p.SrcMAC() != j.from.MAC {
			return j.drop(Spoofed)
		}
		if p.Tuple.Proto == packet.ICMPv6 && p.ICMPType == ndpSolicitation {
			return j.refuse(neighbor, NotDropped)
		}
		if !s.mayUse(j.from, src) && !s.admitRouted(j) {
			if isMulticast(dst) || isLinkLocal(src) {
				return j.drop(Multicast) // router solicitations, MLD: a pod's kernel sends these by itself
			}
			return j.drop(Spoofed)
		}
	case j.wrapped:
		if !w.admitWrapped(s, j) {
			return false
		}
	}
	switch {
	case isMulticast(dst):
		return j.drop(Multicast)
	case isLinkOnly(p):
		return j.drop(LinkOnly)
	}
	return true
}

// admitWrapped applies the rules for packets that came as IP-in-IP. Such a packet is either from a client of the peer's
// host sockets or host TAP, on its way to a pod of this node, or the answer of one of the peer's pods to such a client
// of this node, or it leaves the cluster by an egress address, or answers what did (admitExit).
func (w *worker) admitWrapped(s *snapshot, j *journey) bool {
	p := j.packet
	if w.admitExit(s, j) {
		return true
	}
	if r := w.path.route(s, &p.Tuple.Dst); r.kind == toPod || r.kind == vacant {
		if s.claims(p.Tuple.Src) || noClient(&p.Tuple.Src) {
			return j.drop(BadEncap)
		}
		p.Tuple.Space = j.sender.space
		return true
	}
	if !j.sender.ownsPod(p.Tuple.Src) {
		return j.drop(BadEncap)
	}
	if p.Frag == packet.LaterFrag {
		return true // its first fragment was judged
	}
	t := p.Tuple
	if isICMPError(p) {
		if !w.quote(j) {
			return false
		}
		t = j.quoted.Tuple.Reverse()
	}
	if !w.path.flows.Peek(&t, &j.hit) || !j.answersOutside() {
		return j.drop(BadEncap)
	}
	return true
}
