package netstack

import (
	"errors"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/netstack/udprelay"
)

// origin says where a packet came from.
type origin struct {
	port    *Port // a pod's or the host's; nil for the gateway and the Link
	peer    *peer // the Link's; nil otherwise
	wrapped bool  // it came encapsulated from the peer
	paced   bool  // the sender waits by itself until a Port's limit has room
}

func (o *origin) fromGateway() bool { return o.port == nil && o.peer == nil }

// Values of flow.Entry.Via that are no peer's id: peers' ids are hashes and practically never this small.
const (
	viaRoute   uint64 = 0
	viaGateway uint64 = 1
)

// fromPort takes one superframe from the worker's Port. It returns the buffer to read the next one into.
func (w *worker) fromPort(buf []byte) []byte {
	p := &w.pkt
	switch fault := p.ParseFrame(buf); fault {
	case packet.Good:
		w.port.fromPort.add(len(p.IP))
		w.from = origin{port: w.port}
		w.count(w.steps(p, &w.from))
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

// fromGateway takes one superframe that the node's stack sent. It returns the buffer in exchange.
func (w *worker) fromGateway(buf []byte) []byte {
	p := &w.pkt
	if fault := p.ParseFrame(buf); fault != packet.Good {
		w.count(Dropped, faultReason(fault))
		return buf[:cap(buf)]
	}
	w.from = origin{}
	w.count(w.steps(p, &w.from))
	return p.Buf[:cap(p.Buf)]
}

// fromRelay takes one packet that the gateway made without its stack.
func (w *worker) fromRelay(ip []byte, vnet packet.VNetHdr) {
	p := &w.pkt
	if fault := p.ParseIP(ip); fault != packet.Good {
		w.count(Dropped, faultReason(fault))
		return
	}
	p.VNet = vnet
	w.from = origin{paced: p.Tuple.Proto == packet.TCP}
	w.count(w.steps(p, &w.from))
}

// fromLink takes a decrypted batch of one peer: packets of one flow are coalesced first, so that every step after is
// paid once for many.
func (w *worker) fromLink(id uint64, batch [][]byte) {
	s := w.node.snapshot.Load()
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
	w.plain.Partial, w.wrapped.Partial = peer.SendsPartial, peer.SendsPartial
	wrapped := false
	for _, ip := range batch {
		into := &w.plain
		if inner, outer, ok := packet.Decap(ip); ok {
			if !s.isOwnGateway(outer.Dst) || !peer.isGateway(outer.Src) {
				w.count(Dropped, BadEncap)
				continue
			}
			ip, into, wrapped = inner, &w.wrapped, true
		}
		if fault := into.Add(ip); fault != packet.Good {
			w.count(Dropped, faultReason(fault))
		}
	}
	// Those that come encapsulated are few, and get the zone in which they are looked up only later.
	if several := w.plain.Pending(); len(several) > 1 {
		w.node.flows.Prefetch(several)
	}
	for p := w.plain.Next(); p != nil; p = w.plain.Next() {
		w.from = origin{peer: peer}
		w.count(w.steps(p, &w.from))
	}
	if !wrapped {
		return
	}
	for p := w.wrapped.Next(); p != nil; p = w.wrapped.Next() {
		w.from = origin{peer: peer, wrapped: true}
		w.count(w.steps(p, &w.from))
	}
}

// steps is the life of a packet, top to bottom. It returns exactly one Verdict, and the reason when that is Dropped or
// when the pipeline answered with a refusal.
func (w *worker) steps(p *packet.Packet, o *origin) (Verdict, DropReason) {
	s := w.node.snapshot.Load()
	if s == nil {
		return Dropped, NotReady
	}
	// 1. Who sends it?
	if v, r, done := w.admit(s, p, o); done {
		return v, r
	}
	// 2. An ICMP error belongs to the flow it quotes; a later fragment to the flow of its first.
	if isICMPError(p) {
		return w.related(s, p, o)
	}
	if p.Frag == packet.LaterFrag {
		return w.laterFragment(s, p, o)
	}
	// 3. Its flow: known, or made now by asking the Balancer. 4. Translate.
	via, v, r := w.track(s, p, o)
	if r != NotDropped {
		return v, r
	}
	if p.Frag == packet.FirstFrag {
		w.node.frags.remember(w, p, via)
	}
	// 5. Where to?
	return w.forward(s, p, o, via)
}

// admit checks that the sender may use the source address, and takes out what is not forwarded at all.
func (w *worker) admit(s *snapshot, p *packet.Packet, o *origin) (Verdict, DropReason, bool) {
	src, dst := &p.Tuple.Src, &p.Tuple.Dst
	switch {
	case o.port != nil:
		if p.SrcMAC() != o.port.MAC {
			return Dropped, Spoofed, true
		}
		if p.Tuple.Proto == packet.ICMPv6 && p.ICMPType == ndpSolicitation {
			return w.answerNS(p, o)
		}
		if !o.port.owns(*src) && (o.port.Kind != HostPort || !s.isNodeAddr(*src)) {
			if isMulticast(dst) || isLinkLocal(src) {
				return Dropped, Multicast, true // router solicitations, MLD: a pod's kernel sends them unasked
			}
			return Dropped, Spoofed, true
		}
	case o.wrapped:
		if r := w.admitWrapped(s, p, o.peer); r != NotDropped {
			return Dropped, r, true
		}
	}
	if isMulticast(dst) {
		return Dropped, Multicast, true
	}
	return 0, 0, false
}

// admitWrapped applies the rules for what came IP-in-IP: either a client of the peer's host sockets on its way to one
// of our pods, or the answer of one of the peer's pods to a client of ours.
func (w *worker) admitWrapped(s *snapshot, p *packet.Packet, from *peer) DropReason {
	if r := w.route(s, &p.Tuple.Dst); r.kind == toPod || r.kind == vacant {
		if s.claims(p.Tuple.Src) {
			return BadEncap
		}
		p.Tuple.Zone = from.zone
		return NotDropped
	}
	if !from.ownsPod(p.Tuple.Src) {
		return BadEncap
	}
	if p.Frag == packet.LaterFrag {
		return NotDropped // its first fragment was judged
	}
	t := p.Tuple
	if isICMPError(p) {
		if !p.Embedded(&w.inner) {
			return Malformed
		}
		t = w.inner.Tuple.Reverse()
	}
	if !w.node.flows.Peek(&t, &w.hit) || w.hit.Dir != flow.Reply || w.hit.Via != viaGateway {
		return BadEncap
	}
	return NotDropped
}

// forward hands the packet, translated, to whoever owns its destination.
func (w *worker) forward(s *snapshot, p *packet.Packet, o *origin, via uint64) (Verdict, DropReason) {
	switch via {
	case viaRoute:
	case viaGateway:
		return w.toGateway(p, o)
	default:
		peer := s.peers[via]
		if peer == nil || peer.encap == nil {
			return Dropped, NoRoute
		}
		return w.toLink(s, p, o, peer, peer.encap)
	}
	r := w.route(s, &p.Tuple.Dst)
	switch r.kind {
	case toPod, toHost:
		if r.port == nil {
			break
		}
		if o.wrapped && r.kind != toPod {
			return Dropped, BadEncap
		}
		return w.toPort(p, r.port)
	case toSelf:
		return w.toGateway(p, o)
	case toPeer:
		if o.peer != nil {
			return Dropped, NoRoute // never from one peer to another
		}
		if o.fromGateway() && s.foreign(p.Tuple.Src) {
			if r.peer.encap == nil {
				return Dropped, NoRoute
			}
			return w.toLink(s, p, o, r.peer, r.peer.encap)
		}
		return w.toLink(s, p, o, r.peer, nil)
	case vacant:
		if p.Tuple.Proto == packet.TCP && p.Frag == packet.NoFrag && p.TCPFlags&(packet.SYN|packet.RST) == 0 {
			return w.reset(p, o, NoRoute) // to the kernel an ICMP error would be no reason to give up
		}
		return w.refuse(p, o, packet.HostUnreachable, NoRoute)
	case nowhere:
		return w.refuse(p, o, packet.HostUnreachable, NoRoute)
	}
	// Our own Ports reach the outside. Node addresses without a host Port are reached the same way, by peers as well.
	if o.port == nil && (o.peer == nil || o.wrapped || r.kind != toHost) {
		return Dropped, NoRoute
	}
	if r.kind == outside && unreachable(p.Tuple.Dst.Netip()) {
		return Dropped, NoRoute
	}
	return w.toOutside(p, o)
}

// route adds the local pods and the host Port to what the snapshot knows.
func (w *worker) route(s *snapshot, dst *packet.Addr) route {
	t := w.node.ports.table.Load()
	if port := t.byAddr[*dst]; port != nil {
		return route{kind: toPod, port: port}
	}
	r := s.route(dst)
	if r.kind == toHost {
		r.port = t.host
	}
	return r
}

// toPort writes the packet to a TAP, in this goroutine, unless it has to wait for the Port's limit. The virtio-net header goes along: it was checked, or made by us.
func (w *worker) toPort(p *packet.Packet, port *Port) (Verdict, DropReason) {
	if l := port.limit; l != nil && !l.pass(p.Len(), w.from.paced) {
		if !l.enqueue(p, port.MAC) {
			port.overLimit.Add(1)
			return Dropped, OverLimit
		}
		return ToPort, NotDropped
	}
	return w.write(p, port)
}

// write writes the packet to a TAP, whatever its Port's limit.
func (w *worker) write(p *packet.Packet, port *Port) (Verdict, DropReason) {
	if port.lacks != 0 && countsOn(&p.VNet)&port.lacks != 0 {
		return w.toPlainPort(p, port)
	}
	var err error
	if p.Buf != nil {
		p.PutHead(p.Buf, tap.GatewayMAC, port.MAC)
		err = port.dev.Write(p.Buf[:packet.HeadLen+len(p.IP)])
	} else {
		p.PutHead(w.head[:], tap.GatewayMAC, port.MAC)
		w.iov = append(append(w.iov[:0], w.head[:], p.IP), p.Tail...)
		err = port.dev.Writev(w.iov)
		clear(w.iov)
	}
	if err != nil {
		port.down.Add(1)
		return Dropped, PortDown
	}
	port.toPort.add(p.Len())
	return ToPort, NotDropped
}

// toGateway hands the packet to the node's stack, which does not verify checksums.
func (w *worker) toGateway(p *packet.Packet, o *origin) (Verdict, DropReason) {
	if p.VNet.Flags&(packet.NeedsCsum|packet.DataValid) == 0 && p.Frag == packet.NoFrag && !p.ChecksumOK() {
		return Dropped, Malformed
	}
	w.node.gateway.Deliver(p, &w.turn, o.fromGateway())
	return ToGateway, NotDropped
}

// toOutside sends the packet on its way over host sockets: echoes by ping sockets, datagrams by the relay's, and the rest, fragments
// too, through the stack.
func (w *worker) toOutside(p *packet.Packet, o *origin) (Verdict, DropReason) {
	switch {
	case isEcho(p) && p.Frag == packet.NoFrag:
		if w.node.gateway.Ping(p) != nil {
			return w.refuse(p, o, packet.HostUnreachable, NoRoute)
		}
		return ToGateway, NotDropped
	case p.Tuple.Proto == packet.UDP && p.Frag == packet.NoFrag:
		if !p.ChecksumOK() {
			return Dropped, Malformed
		}
		return w.outcome(p, o)
	case p.Tuple.Proto == packet.TCP, p.Tuple.Proto == packet.UDP:
		return w.toGateway(p, o)
	}
	return w.refuse(p, o, packet.AdminProhibited, NoRoute)
}

// outcome has the relay send a datagram, or several, and says what became of it.
func (w *worker) outcome(p *packet.Packet, o *origin) (Verdict, DropReason) {
	mtu, err := w.node.gateway.Outside(p)
	switch {
	case err == nil:
		return ToGateway, NotDropped
	case errors.Is(err, udprelay.ErrTooBig):
		return w.tooBig(w.node.snapshot.Load(), p, o, mtu)
	case errors.Is(err, udprelay.ErrBusy):
		return Dropped, HostBusy
	}
	return w.refuse(p, o, packet.HostUnreachable, NoRoute)
}

// toLink hands the packet to another node, if it fits the way there (RFC 1191, RFC 8201).
func (w *worker) toLink(s *snapshot, p *packet.Packet, o *origin, to *peer, via *packet.Encap) (Verdict, DropReason) {
	if w.node.link == nil {
		return Dropped, NoRoute
	}
	mtu := w.node.link.MTU(to.ID)
	if via != nil {
		mtu -= addressing.Encap(!via.Dst.Is4())
	}
	if segmentLen(p) > mtu {
		if p.DontFragment || p.VNet.GSOType != packet.GSONone {
			return w.tooBig(s, p, o, mtu)
		}
		if len(w.fragment) < mtu {
			w.fragment = make([]byte, mtu)
		}
		p.Fragment(mtu, w.fragment, func(ip []byte) {
			if w.answer.ParseIP(ip) == packet.Good {
				w.node.link.Send(&w.answer, to.ID, via)
			}
		})
		return ToLink, NotDropped
	}
	w.node.link.Send(p, to.ID, via)
	return ToLink, NotDropped
}

// segmentLen is the length of the largest IP packet that p becomes on a wire.
func segmentLen(p *packet.Packet) int {
	if p.VNet.GSOType == packet.GSONone {
		return p.Len()
	}
	return min(p.Payload+int(p.VNet.GSOSize), p.Len())
}
