package packet

// ICMPError is a kind of ICMP error, the same for both families.
type ICMPError uint8

// The errors a node answers with.
const (
	PortUnreachable ICMPError = iota
	HostUnreachable
	AdminProhibited
	TooBig // with the MTU that would fit
	TimeExceeded
	NetUnreachable
)

// icmpErrors lists type and code of each error: first for ICMPv4 (RFC 792, RFC 1812 5.2.7.1), then for ICMPv6 (RFC
// 4443).
var icmpErrors = [...][2][2]uint8{
	PortUnreachable: {{3, 3}, {1, 4}},
	HostUnreachable: {{3, 1}, {1, 3}},
	AdminProhibited: {{3, 13}, {1, 1}},
	TooBig:          {{3, 4}, {2, 0}},
	TimeExceeded:    {{11, 0}, {3, 0}},
	NetUnreachable:  {{3, 0}, {1, 0}},
}

// The largest lengths of an ICMP error in bytes (RFC 1812 4.3.2.3; RFC 4443 2.4 (c)).
const (
	maxError4 = 576
	maxError6 = 1280
)

// PutICMPError writes to dst the IP packet that answers p with the error e, from the address from to p's source, and
// returns its length. mtu is used for TooBig only. dst holds 1280 bytes.
//
// It returns 0 when no error may be sent (RFC 1812 4.3.2.7, RFC 4443 2.4 (e)): in answer to an ICMP error, a later
// fragment, or a packet whose source or destination is not a single host; and when from is of the other family.
//
// Of a superframe the first segment is quoted, and a partial checksum is quoted completed, since a wire never carried
// either.
func PutICMPError(dst []byte, p *Packet, e ICMPError, from Addr, mtu int) int {
	v6 := p.EtherType == EtherIPv6
	if int(e) >= len(icmpErrors) || from.Is4() == v6 || p.Frag == LaterFrag || p.isICMPError() || !p.answerable() {
		return 0
	}
	hl, limit, proto, kind := 20, maxError4, ICMPv4, icmpErrors[e][0]
	if v6 {
		hl, limit, proto, kind = 40, maxError6, ICMPv6, icmpErrors[e][1]
	}
	n := hl + 8 + p.quote(dst[hl+8:limit])
	dst = dst[:n]
	icmp := dst[hl:]
	clear(icmp[:8])
	icmp[0], icmp[1] = kind[0], kind[1]
	if e == TooBig && v6 {
		be.PutUint32(icmp[4:], uint32(mtu))
	} else if e == TooBig {
		be.PutUint16(icmp[6:], uint16(min(mtu, 65535))) // RFC 1191 4
	}
	to := p.Tuple.Src
	putIP(dst, proto, &from, &to)
	setL4Checksum(dst, hl, proto)
	return n
}

// putIP writes the IP header, of the family of src and dst, for a packet that fills b.
func putIP(b []byte, proto Proto, src, dst *Addr) {
	if src.Is4() {
		put4(b, len(b), proto, src, dst)
	} else {
		put6(b, len(b), proto, src, dst)
	}
}

// isICMPError reports whether p is an ICMP error or redirect. No error may answer those.
func (p *Packet) isICMPError() bool {
	if !p.isICMP() || p.Frag == LaterFrag {
		return false
	}
	if p.EtherType == EtherIPv6 {
		return p.ICMPType < 128 || p.ICMPType == 137
	}
	switch p.ICMPType {
	case 3, 4, 5, 11, 12:
		return true
	}
	return false
}

// answerable reports whether both addresses of p, and its Ethernet destination, name one host each.
func (p *Packet) answerable() bool {
	if p.Buf != nil && p.Buf[VNetHdrLen]&1 != 0 {
		return false
	}
	return p.Tuple.Src.isHost() && p.Tuple.Dst.isHost()
}

// isHost reports whether a may be the address of a single host other than the local one.
func (a *Addr) isHost() bool {
	if a.Is4() {
		return a[12] != 0 && a[12] != 127 && a[12] < 224
	}
	return a[0] != 0xff && *a != (Addr{}) && *a != (Addr{15: 1})
}

// quote copies to b as much of p as fits, in the form it would have on a wire, and returns the number of bytes.
func (p *Packet) quote(b []byte) int {
	end := len(p.IP)
	if p.VNet.GSOType != GSONone {
		end = min(end, p.Payload+int(p.VNet.GSOSize))
	}
	n := copy(b, p.IP[:end])
	if !p.isPartial() || n < p.Payload {
		return n
	}
	if p.VNet.GSOType != GSONone {
		s := Segmenter{p: p, size: end - p.Payload, done: end == p.Len()}
		s.fix(b[:n], end)
	}
	// The checksum covers the whole segment, of which b may hold only the beginning.
	off, _ := csumOffset(p.Tuple.Proto)
	l4 := b[p.L4:p.Payload]
	l4[off], l4[off+1] = 0, 0
	sum := uint64(pseudoSum(b, p.Tuple.Proto, end-p.L4))
	sum += uint64(Checksum(l4, 0)) + uint64(Checksum(p.IP[p.Payload:end], 0))
	putL4Checksum(l4[off:], p.Tuple.Proto, ^fold(sum))
	return n
}

// PutRST writes to dst the TCP segment that refuses p (RFC 9293 3.10.7.1) and returns its length. It returns 0 in
// answer to an RST, a fragment, a packet other than TCP, or a packet whose source or destination is not a single host.
// dst holds 60 bytes.
func PutRST(dst []byte, p *Packet) int {
	if p.Tuple.Proto != TCP || p.Frag != NoFrag || p.TCPFlags&RST != 0 || !p.answerable() {
		return 0
	}
	hl := 40
	if p.EtherType == EtherIPv4 {
		hl = 20
	}
	dst = dst[:hl+20]
	to, got := dst[hl:], p.IP[p.L4:]
	clear(to)
	be.PutUint16(to, p.Tuple.DstPort)
	be.PutUint16(to[2:], p.Tuple.SrcPort)
	to[12] = 5 << 4
	if p.TCPFlags&ACK != 0 {
		copy(to[4:8], got[8:12])
		to[13] = RST
	} else {
		n := uint32(p.Len() - p.Payload)
		if p.TCPFlags&SYN != 0 {
			n++
		}
		if p.TCPFlags&FIN != 0 {
			n++
		}
		be.PutUint32(to[8:], be.Uint32(got[4:])+n)
		to[13] = RST | ACK
	}
	src, back := p.Tuple.Dst, p.Tuple.Src
	putIP(dst, TCP, &src, &back)
	setL4Checksum(dst, hl, TCP)
	return len(dst)
}
