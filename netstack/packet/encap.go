package packet

// The ECN bits of the traffic class (RFC 3168 5).
const (
	ecnMask = 3
	ecnCE   = 3
)

// putOuter writes an outer header of n bytes before the IP packet at dst[n:]. The outer packet is never fragmented: the
// tunnel's MTU leaves room for it. Its traffic class is that of the inner packet, ECN included (RFC 6040 normal mode).
func putOuter(dst []byte, n int, via *Encap) {
	inner := dst[n:]
	proto, class := IPIP, inner[1]
	if inner[0]>>4 == 6 {
		proto, class = IPv6IP, trafficClass(inner)
	}
	if n == 20 {
		put4(dst, len(dst), proto, &via.Src, &via.Dst)
		dst[1] = class
		setHeaderChecksum(dst[:20])
		return
	}
	put6(dst, len(dst), proto, &via.Src, &via.Dst)
	dst[0] |= class >> 4
	dst[1] |= class << 4
}

// put4 writes a 20-byte IPv4 header for a packet of total bytes. DF is set, so the packet needs no identification (RFC
// 6864 4.1).
func put4(b []byte, total int, proto Proto, src, dst *Addr) {
	clear(b[:20])
	b[0], b[8], b[9] = 0x45, 64, byte(proto)
	be.PutUint16(b[2:], uint16(total))
	b[6] = 0x40
	copy(b[12:16], src[12:])
	copy(b[16:20], dst[12:])
	setHeaderChecksum(b[:20])
}

// put6 writes a 40-byte IPv6 header for a packet of total bytes.
func put6(b []byte, total int, proto Proto, src, dst *Addr) {
	clear(b[:8])
	b[0], b[6], b[7] = 0x60, byte(proto), 64
	be.PutUint16(b[4:], uint16(total-40))
	copy(b[8:24], src[:])
	copy(b[24:40], dst[:])
}

func trafficClass(ip []byte) byte { return ip[0]<<4 | ip[1]>>4 }

// Inner returns the packet in an IP-in-IP packet of any pair of families, and the outer addresses. inner is a part of
// ip and is not parsed yet. ok is false for other packets and for fragments.
func Inner(ip []byte) (inner []byte, outer Encap, ok bool) {
	var p Packet
	if p.parseNet(ip, false) != Good || p.Frag != NoFrag {
		return nil, Encap{}, false
	}
	if p.EtherType == EtherIPv4 && Checksum(p.IP[:p.L4], 0) != 0xffff {
		return nil, Encap{}, false
	}
	inner = p.IP[p.L4:]
	switch p.Tuple.Proto {
	case IPIP:
		ok = len(inner) >= 20 && inner[0]>>4 == 4
	case IPv6IP:
		ok = len(inner) >= 40 && inner[0]>>4 == 6
	}
	if !ok {
		return nil, Encap{}, false
	}
	return inner, Encap{p.Tuple.Src, p.Tuple.Dst}, true
}

// Decap removes the outer header of an IP-in-IP packet, as Inner, and copies a congestion mark of it to inner, in
// place. ok is false as well for a mark that the inner packet cannot carry.
func Decap(ip []byte) (inner []byte, outer Encap, ok bool) {
	if inner, outer, ok = Inner(ip); !ok || !CopyMark(ip, inner) {
		return nil, Encap{}, false
	}
	return inner, outer, true
}

// CopyMark copies a congestion mark of the header of outer to the packet that Inner found in it. It returns false for a
// mark that the inner packet cannot carry, which is then dropped (RFC 6040 4.2).
func CopyMark(outer, inner []byte) bool {
	return !HasCE(outer) || MarkCE(inner)
}

// HasCE reports whether the header of ip says "congestion experienced".
func HasCE(ip []byte) bool {
	class := ip[1]
	if ip[0]>>4 == 6 {
		class = trafficClass(ip)
	}
	return class&ecnMask == ecnCE
}

// MarkCE sets "congestion experienced" in ip. It returns false when the ends of the packet do not support ECN.
func MarkCE(ip []byte) bool {
	if ip[0]>>4 == 6 {
		if ip[1]>>4&ecnMask == 0 {
			return false
		}
		ip[1] |= ecnCE << 4
		return true
	}
	if ip[1]&ecnMask == 0 {
		return false
	}
	old := uint16(ip[1])
	ip[1] |= ecnCE
	update(ip[10:], portDelta(old, uint16(ip[1])))
	return true
}
