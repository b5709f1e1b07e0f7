package packet

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

var (
	be = binary.BigEndian
	le = binary.LittleEndian
)

// castagnoli is the table for SCTP's checksum (RFC 9260 appendix A). noCRC takes the place of the checksum field while
// the CRC is computed.
var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	noCRC      [4]byte
)

// Checksum returns the ones' complement sum of b as big-endian 16-bit words, added to initial (RFC 1071). The result is
// folded and not complemented: a header with its checksum in place sums up to 0xffff. An odd last byte counts as if a
// zero followed it.
func Checksum(b []byte, initial uint32) uint16 {
	// The words may be added in any byte order, as long as the result is swapped back (RFC 1071 2.B).
	var sum, c uint64
	for len(b) >= 128 {
		w := (*[128]byte)(b)
		sum, c = bits.Add64(sum, le.Uint64(w[0:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[8:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[16:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[24:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[32:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[40:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[48:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[56:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[64:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[72:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[80:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[88:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[96:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[104:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[112:]), c)
		sum, c = bits.Add64(sum, le.Uint64(w[120:]), c)
		b = b[128:]
	}
	for len(b) >= 8 {
		sum, c = bits.Add64(sum, le.Uint64(b), c)
		b = b[8:]
	}
	var last uint64
	if len(b) > 0 {
		shift := 0
		if len(b) >= 4 {
			last, shift, b = uint64(le.Uint32(b)), 32, b[4:]
		}
		if len(b) >= 2 {
			last |= uint64(le.Uint16(b)) << shift
			shift, b = shift+16, b[2:]
		}
		if len(b) == 1 {
			last |= uint64(b[0]) << shift
		}
	}
	sum, c = bits.Add64(sum, last, c)
	sum, c = bits.Add64(sum, 0, c)
	sum += c
	return fold(uint64(bits.ReverseBytes16(fold(sum))) + uint64(initial))
}

// fold reduces a sum to 16 bits with end-around carry.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s&0xffff)
}

// pseudoSum returns the folded sum of the pseudo header of the packet ip with n bytes of L4 (RFC 9293 3.1, RFC 8200
// 8.1).
func pseudoSum(ip []byte, proto Proto, n int) uint16 {
	s := uint32(proto) + uint32(n)>>16 + uint32(n)&0xffff
	if ip[0]>>4 == 4 {
		return Checksum(ip[12:20], s)
	}
	return Checksum(ip[8:40], s)
}

// putPartial writes the partial checksum of a TCP or UDP packet; somebody else completes it. ip holds at least the
// headers, n is the length in bytes from L4 on. A sum that contains the protocol's number never folds to 0, so the
// field of a datagram never says "no checksum" (RFC 768).
func putPartial(ip []byte, l4 int, proto Proto, n int) {
	off, _ := csumOffset(proto)
	be.PutUint16(ip[l4+off:], pseudoSum(ip, proto, n))
}

// offloadChecksum sets p.VNet so that the receiver of the frame completes the checksum of p, which is TCP or UDP.
func (p *Packet) offloadChecksum() {
	off, _ := csumOffset(p.Tuple.Proto)
	p.VNet = VNetHdr{Flags: NeedsCsum, HdrLen: uint16(EthLen + p.Payload), CsumStart: uint16(EthLen + p.L4), CsumOffset: uint16(off)}
}

// detectPartial finds out whether p, which came from a peer that may send partial checksums, has one, and sets p.VNet
// accordingly.
//
// The checksum field alone decides. One full checksum in 65,535 equals the sum of the pseudo header by chance, which
// does no harm. When that checksum is right, completing it computes the same value again. When it is wrong, damage that
// happened before the peer encrypted the packet stays unnoticed; that is as likely as a full checksum that happens to
// fit damaged data. The AEAD of the tunnel notices all damage on the way here.
func (p *Packet) detectPartial() {
	proto, n := p.Tuple.Proto, len(p.IP)-p.L4
	// A peer sends as partial only what its ParseFrame admits as partial.
	if proto != TCP && proto != UDP || p.Frag != NoFrag || p.fragAt != 0 {
		return
	}
	b := p.IP[p.L4:]
	if proto == UDP && int(be.Uint16(b[4:])) != n {
		return
	}
	if off, _ := csumOffset(proto); be.Uint16(b[off:]) == pseudoSum(p.IP, proto, n) {
		p.offloadChecksum()
	}
}

// csumOffset returns the offset of the Internet checksum in the L4 header of proto; ok is false for protocols without
// one.
func csumOffset(proto Proto) (off int, ok bool) {
	switch proto {
	case TCP:
		return 16, true
	case UDP:
		return 6, true
	case ICMPv4, ICMPv6:
		return 2, true
	}
	return 0, false
}

// setHeaderChecksum computes and writes the checksum of an IPv4 header.
func setHeaderChecksum(hdr []byte) {
	hdr[10], hdr[11] = 0, 0
	be.PutUint16(hdr[10:], ^Checksum(hdr, 0))
}

// setL4Checksum computes and writes the full checksum of the contiguous packet ip, whose L4 header starts at l4.
func setL4Checksum(ip []byte, l4 int, proto Proto) {
	off, ok := csumOffset(proto)
	if !ok {
		return
	}
	b := ip[l4:]
	b[off], b[off+1] = 0, 0
	var seed uint16
	if proto != ICMPv4 {
		seed = pseudoSum(ip, proto, len(b))
	}
	putL4Checksum(b[off:], proto, ^Checksum(b, uint32(seed)))
}

// putL4Checksum writes a computed checksum. In UDP 0 means "none", so 0xffff, which is the same number, is written
// instead (RFC 768).
func putL4Checksum(field []byte, proto Proto, sum uint16) {
	if sum == 0 && proto == UDP {
		sum = 0xffff
	}
	be.PutUint16(field, sum)
}

// sctpSum returns the CRC32c of an SCTP packet, with its checksum field taken as zero (RFC 9260 6.8).
func sctpSum(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:8])
	c = crc32.Update(c, castagnoli, noCRC[:])
	return crc32.Update(c, castagnoli, b[12:])
}

// isPartial reports whether the L4 checksum field holds only the folded sum of the pseudo header.
func (p *Packet) isPartial() bool { return p.VNet.Flags&NeedsCsum != 0 }

// CompleteChecksum turns a partial checksum into a full one, in place. It does nothing for a superframe, and for a
// checksum that is full already.
func (p *Packet) CompleteChecksum() {
	if !p.isPartial() || p.VNet.GSOType != GSONone {
		return
	}
	setL4Checksum(p.IP, p.L4, p.Tuple.Proto)
	p.VNet = VNetHdr{}
}

// ChecksumOK reports whether the full L4 checksum is right, Tail included. It returns true where there is nothing to
// verify: for a fragment, a protocol without a known checksum, UDP over IPv4 without a checksum, and a partial
// checksum.
func (p *Packet) ChecksumOK() bool {
	if p.Frag != NoFrag || p.isPartial() {
		return true
	}
	b := p.IP[p.L4:]
	switch p.Tuple.Proto {
	case SCTP:
		return len(p.Tail) == 0 && sctpSum(b) == le.Uint32(b[8:])
	case UDP:
		if be.Uint16(b[6:]) == 0 {
			return p.EtherType == EtherIPv4
		}
		if n := int(be.Uint16(b[4:])); len(p.Tail) == 0 && n < len(b) {
			b = b[:n] // bytes after the datagram do not count
		}
	case TCP:
	case ICMPv4, ICMPv6:
		if !p.isICMP() {
			return true
		}
	default:
		return true
	}
	n := len(b)
	sum := uint64(Checksum(b, 0))
	for _, t := range p.Tail {
		sum += uint64(sumAt(t, n))
		n += len(t)
	}
	if p.Tuple.Proto != ICMPv4 {
		sum += uint64(pseudoSum(p.IP, p.Tuple.Proto, n))
	}
	return fold(sum) == 0xffff
}

// sumAt returns what b adds to the sum of a longer run of bytes in which it stands at offset at. At an odd offset the
// two bytes of each word change places.
func sumAt(b []byte, at int) uint16 {
	s := Checksum(b, 0)
	if at&1 != 0 {
		s = bits.ReverseBytes16(s)
	}
	return s
}
