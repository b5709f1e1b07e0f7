package packet

// Rewrite changes the addresses and ports of p in place to those of to, updates the checksums, and updates p.Tuple
// except for Space and Proto. For an ICMP echo it changes the identifier to to.SrcPort. to must be of p's family.
// Checksums are updated, never computed anew, so a packet that arrived damaged leaves damaged (RFC 1624 eqn. 3). The
// ports of a fragmented SCTP packet cannot be translated: its checksum is a CRC over data that only the receiver has.
func (p *Packet) Rewrite(to *Tuple) {
	addrs := p.putAddrs(to)
	p.rewriteL4(to, addrs)
	space, proto := p.Tuple.Space, p.Tuple.Proto
	p.Tuple = *to
	p.Tuple.Space, p.Tuple.Proto = space, proto
}

// putAddrs writes the addresses of to over those of p.Tuple. It returns what this adds to a sum that covers the
// addresses.
func (p *Packet) putAddrs(to *Tuple) (delta uint64) {
	var src, dst uint64
	if p.Tuple.Src != to.Src {
		src = addrDelta(&p.Tuple.Src, &to.Src)
	}
	if p.Tuple.Dst != to.Dst {
		dst = addrDelta(&p.Tuple.Dst, &to.Dst)
	}
	ip := p.IP
	if p.EtherType == EtherIPv6 {
		copy(ip[8:24], to.Src[:])
		copy(ip[24:40], to.Dst[:])
		return src + dst
	}
	copy(ip[12:16], to.Src[12:])
	copy(ip[16:20], to.Dst[12:])
	update(ip[10:], src+dst)
	return src + dst
}

// addrDelta returns the sum of ~m + m' over the words m of from and m' of to (RFC 1624).
func addrDelta(from, to *Addr) (sum uint64) {
	for i := 0; i < 16; i += 4 {
		sum += uint64(^be.Uint32(from[i:])) + uint64(be.Uint32(to[i:]))
	}
	return sum
}

// portDelta returns ~m + m' for one 16-bit field, 0 when the field does not change.
func portDelta(from, to uint16) uint64 {
	if from == to {
		return 0
	}
	return uint64(^from) + uint64(to)
}

// update applies delta to the full checksum at b (RFC 1624 eqn. 3).
func update(b []byte, delta uint64) {
	if delta != 0 {
		be.PutUint16(b, ^fold(uint64(^be.Uint16(b))+delta))
	}
}

// rewriteL4 writes the ports of to and updates the L4 checksum for them and for addrs. It checks that each field is
// there, since a packet quoted in an ICMP error may end anywhere after its eighth byte.
func (p *Packet) rewriteL4(to *Tuple, addrs uint64) {
	if p.Frag == LaterFrag {
		return
	}
	b := p.IP[p.L4:]
	switch p.Tuple.Proto {
	case TCP:
		ports := putPorts(b, &p.Tuple, to)
		if len(b) >= 18 {
			p.updateL4(b[16:], addrs, ports)
		}
	case UDP:
		ports := putPorts(b, &p.Tuple, to)
		if be.Uint16(b[6:]) == 0 && !p.isPartial() {
			return // sent without a checksum, which tunnels do in IPv6 too (RFC 6935, RFC 6936)
		}
		p.updateL4(b[6:], addrs, ports)
		if be.Uint16(b[6:]) == 0 && !p.isPartial() {
			b[6], b[7] = 0xff, 0xff
		}
	case SCTP:
		p.rewriteSCTP(to)
	case ICMPv4, ICMPv6:
		if !p.isICMP() {
			return
		}
		var id uint64
		if p.isEcho() {
			id = portDelta(p.Tuple.SrcPort, to.SrcPort)
			be.PutUint16(b[4:], to.SrcPort)
		}
		if p.EtherType == EtherIPv4 {
			addrs = 0 // no pseudo header
		}
		update(b[2:], addrs+id)
	}
}

func putPorts(b []byte, from, to *Tuple) (delta uint64) {
	be.PutUint16(b, to.SrcPort)
	be.PutUint16(b[2:], to.DstPort)
	return portDelta(from.SrcPort, to.SrcPort) + portDelta(from.DstPort, to.DstPort)
}

// updateL4 updates a checksum field of TCP or UDP. A partial checksum is the sum itself, not its complement, and covers
// only the pseudo header; whoever completes it adds the ports.
func (p *Packet) updateL4(field []byte, addrs, ports uint64) {
	if !p.isPartial() {
		update(field, addrs+ports)
	} else if addrs != 0 {
		be.PutUint16(field, fold(uint64(be.Uint16(field))+addrs))
	}
}

// rewriteSCTP writes the ports of to. The CRC covers ports but not addresses. A packet whose CRC is wrong keeps it; the
// zero of RFC 9653 counts as wrong.
func (p *Packet) rewriteSCTP(to *Tuple) {
	b := p.IP[p.L4:]
	if p.Tuple.SrcPort == to.SrcPort && p.Tuple.DstPort == to.DstPort {
		return
	}
	good := len(b) >= 12 && p.Frag == NoFrag && sctpSum(b) == le.Uint32(b[8:])
	putPorts(b, &p.Tuple, to)
	if good {
		le.PutUint32(b[8:], sctpSum(b))
	}
}
