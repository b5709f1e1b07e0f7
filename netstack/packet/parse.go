package packet

// maxExtHeaders bounds the walk along IPv6 extension headers. RFC 8200 4.1 lists at most seven.
const maxExtHeaders = 7

// IPv6 extension headers that the parser skips to reach the L4 header.
const (
	extHopByHop = 0
	extRouting  = 43
	extFragment = 44
	extDestOpts = 60
)

// ParseFrame makes p a view of a superframe that came from a TAP or the stack; buf is borrowed. After a fault the other
// fields have no meaning, except EtherType after NotIP. Nothing in buf is believed: neither lengths nor the virtio-net
// header, both of which the sender writes. p.VNet is that header, checked and normalised; PutHead writes it back.
func (p *Packet) ParseFrame(buf []byte) Fault {
	p.reset()
	p.Buf = buf
	if len(buf) < HeadLen {
		return Malformed
	}
	p.EtherType = be.Uint16(buf[VNetHdrLen+12:])
	ip := buf[HeadLen:]
	switch p.EtherType {
	case EtherIPv4, EtherIPv6:
	default:
		return NotIP
	}
	said := p.EtherType
	if f := p.parse(ip); f != Good {
		return f
	}
	if p.EtherType != said {
		return Malformed
	}
	p.Buf = buf[:HeadLen+len(p.IP)] // without Ethernet padding
	p.VNet.Decode(buf)
	return p.checkOffload()
}

// ParseIP makes p a view of one bare IP packet; ip is borrowed. p.VNet becomes zero: the checksum counts as full.
func (p *Packet) ParseIP(ip []byte) Fault {
	p.reset()
	return p.parse(ip)
}

func (p *Packet) reset() { *p = Packet{Tail: p.Tail[:0]} }

// isICMP reports whether p is ICMP of its own family.
func (p *Packet) isICMP() bool {
	return p.Tuple.Proto == ICMPv4 && p.EtherType == EtherIPv4 || p.Tuple.Proto == ICMPv6 && p.EtherType == EtherIPv6
}

// isEcho reports whether p is an ICMP echo request or reply. Their identifier takes the place of the ports.
func (p *Packet) isEcho() bool {
	if p.EtherType == EtherIPv4 {
		return p.Tuple.Proto == ICMPv4 && (p.ICMPType == 8 || p.ICMPType == 0)
	}
	return p.Tuple.Proto == ICMPv6 && (p.ICMPType == 128 || p.ICMPType == 129)
}

// IsEchoRequest reports whether p is an ICMP echo request, or the first fragment of one.
func (p *Packet) IsEchoRequest() bool {
	return p.isEcho() && (p.ICMPType == 8 || p.ICMPType == 128) && p.Frag != LaterFrag
}

func (p *Packet) parse(ip []byte) Fault {
	if f := p.parseNet(ip, false); f != Good {
		return f
	}
	if p.EtherType == EtherIPv4 && Checksum(p.IP[:p.L4], 0) != 0xffff {
		return Malformed
	}
	return p.parseL4()
}

// parseNet reads the IP header. cut allows the packet to be shorter than its header says, as packets quoted in ICMP
// errors are.
func (p *Packet) parseNet(ip []byte, cut bool) Fault {
	if len(ip) == 0 {
		return Malformed
	}
	switch ip[0] >> 4 {
	case 4:
		return p.parse4(ip, cut)
	case 6:
		return p.parse6(ip, cut)
	}
	return Malformed
}

func (p *Packet) parse4(ip []byte, cut bool) Fault {
	if len(ip) < 20 {
		return Malformed
	}
	hl, total := int(ip[0]&15)*4, int(be.Uint16(ip[2:]))
	if hl < 20 || total < hl || len(ip) < hl || len(ip) < total && !cut {
		return Malformed
	}
	if hl > 20 && !goodOptions(ip[20:hl]) {
		return Malformed
	}
	p.IP = ip[:min(total, len(ip))]
	p.EtherType = EtherIPv4
	p.L4 = hl
	p.Tuple.Proto = Proto(ip[9])
	p.Tuple.Src, p.Tuple.Dst = addr4(ip[12:16]), addr4(ip[16:20])
	frag := be.Uint16(ip[6:])
	p.DontFragment = frag&0x4000 != 0
	if frag&0x3fff == 0 {
		return Good
	}
	p.FragID = uint32(be.Uint16(ip[4:]))
	return p.fragment(int(frag&0x1fff)*8, frag&0x2000 != 0, total-hl)
}

func (p *Packet) parse6(ip []byte, cut bool) Fault {
	if len(ip) < 40 {
		return Malformed
	}
	total := 40 + int(be.Uint16(ip[4:]))
	if len(ip) < total && !cut {
		return Malformed
	}
	ip = ip[:min(total, len(ip))]
	p.IP = ip
	p.EtherType = EtherIPv6
	p.DontFragment = true
	p.Tuple.Src, p.Tuple.Dst = Addr(ip[8:24]), Addr(ip[24:40])
	if p.Tuple.Src.Is4() || p.Tuple.Dst.Is4() {
		return Malformed
	}
	next, at := ip[6], 40
	for range maxExtHeaders + 1 {
		n := 8
		switch next {
		case extHopByHop, extRouting, extDestOpts:
			if next == extHopByHop && at != 40 || at+8 > len(ip) {
				return Malformed
			}
			// A routing header has segments left: the final destination is not the one in Tuple (RFC 5095).
			if next == extRouting && ip[at+3] != 0 {
				return Malformed
			}
			n = (int(ip[at+1]) + 1) * 8
		case extFragment:
			if p.fragAt != 0 || at+8 > len(ip) {
				return Malformed
			}
			p.fragAt = at
			off := be.Uint16(ip[at+2:])
			if off&0xfff9 == 0 {
				break // an atomic fragment is a whole packet (RFC 6946)
			}
			p.FragID = be.Uint32(ip[at+4:])
			if f := p.fragment(int(off&0xfff8), off&1 != 0, total-at-8); f != Good {
				return f
			}
		default:
			p.L4 = at
			p.Tuple.Proto = Proto(next)
			return p.overlap(ip)
		}
		if at+n > len(ip) {
			return Malformed
		}
		next, at = ip[at], at+n
		if p.Frag == LaterFrag { // what follows is data, whatever next says
			p.L4 = at
			p.Tuple.Proto = Proto(next)
			return p.overlap(ip)
		}
	}
	return Malformed
}

// fragment records that p is a fragment with n bytes of data at offset off, and refuses impossible ones.
func (p *Packet) fragment(off int, more bool, n int) Fault {
	if more && n%8 != 0 || off+n > 65535 || n <= 0 {
		return Malformed
	}
	p.Frag = FirstFrag
	if off != 0 {
		p.Frag = LaterFrag
	}
	if p.EtherType == EtherIPv4 {
		return p.overlap(p.IP)
	}
	return Good
}

// overlap refuses a later fragment that could overwrite the L4 header of the first (RFC 1858).
func (p *Packet) overlap(ip []byte) Fault {
	if p.Frag != LaterFrag {
		return Good
	}
	off := int(be.Uint16(ip[6:])&0x1fff) * 8
	if p.fragAt != 0 {
		off = int(be.Uint16(ip[p.fragAt+2:]) & 0xfff8)
	}
	if off < minL4(p.Tuple.Proto) {
		return Malformed
	}
	return Good
}

// minL4 returns the length of the fixed part of the L4 header in bytes, 0 where it is not known.
func minL4(proto Proto) int {
	switch proto {
	case TCP:
		return 20
	case SCTP:
		return 12
	case UDP, ICMPv4, ICMPv6:
		return 8
	}
	return 0
}

// parseL4 reads the L4 header that follows a valid IP header.
func (p *Packet) parseL4() Fault {
	if p.Frag == LaterFrag {
		p.Payload = p.L4
		return Good
	}
	b := p.IP[p.L4:]
	n := minL4(p.Tuple.Proto)
	if len(b) < n {
		return Malformed
	}
	switch p.Tuple.Proto {
	case TCP:
		n = int(b[12]>>4) * 4
		if n < 20 || n > len(b) {
			return Malformed
		}
	case UDP:
		if u := int(be.Uint16(b[4:])); u < 8 || u > len(b) && p.Frag == NoFrag {
			return Malformed
		}
	}
	p.ports(b)
	if p.Payload = p.L4 + n; n == 0 {
		p.Payload = len(p.IP)
	}
	return Good
}

// ports reads the L4 fields that stand in the first eight bytes of b, and what Segment returns if b is long enough.
func (p *Packet) ports(b []byte) {
	switch p.Tuple.Proto {
	case TCP, UDP, SCTP:
		p.Tuple.SrcPort, p.Tuple.DstPort = be.Uint16(b), be.Uint16(b[2:])
		switch {
		case p.Tuple.Proto == TCP && len(b) > 13:
			p.TCPFlags, p.tcpSeq, p.tcpAck = b[13], be.Uint32(b[4:8]), be.Uint32(b[8:12])
		case p.Tuple.Proto == SCTP:
			p.TCPFlags = sctpFlags(b)
		}
	case ICMPv4, ICMPv6:
		if !p.isICMP() {
			return
		}
		p.ICMPType, p.ICMPCode = b[0], b[1]
		if p.isEcho() {
			id := be.Uint16(b[4:])
			p.Tuple.SrcPort, p.Tuple.DstPort = id, id
		}
	}
}

// addr4 returns the IPv4 address in the first four bytes of b.
func addr4(b []byte) Addr {
	return Addr{10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}
}
