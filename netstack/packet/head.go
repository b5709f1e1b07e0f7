package packet

// Limits of one superframe: what the kernel allows, and how much work a pod may cause with one frame.
const (
	// minGSOSize is the smallest payload in bytes that Linux's TCP puts into a segment (TCP_MIN_SND_MSS 48 minus 40 of
	// options).
	minGSOSize = 8
	// maxTCPSegments keeps one superframe of a hostile pod from becoming thousands of tunnel packets.
	maxTCPSegments = 1024
	// maxUDPSegments is UDP_MAX_SEGMENTS (include/linux/udp.h). It is 64 before Linux 6.9.
	maxUDPSegments = 128
)

// Decode reads the 10 bytes of a virtio_net_hdr.
func (h *VNetHdr) Decode(b []byte) {
	_ = b[9]
	h.Flags, h.GSOType = b[0], b[1]
	h.HdrLen, h.GSOSize = le.Uint16(b[2:]), le.Uint16(b[4:])
	h.CsumStart, h.CsumOffset = le.Uint16(b[6:]), le.Uint16(b[8:])
}

// Encode writes the 10 bytes of a virtio_net_hdr.
func (h VNetHdr) Encode(b []byte) {
	_ = b[9]
	b[0], b[1] = h.Flags, h.GSOType
	le.PutUint16(b[2:], h.HdrLen)
	le.PutUint16(b[4:], h.GSOSize)
	le.PutUint16(b[6:], h.CsumStart)
	le.PutUint16(b[8:], h.CsumOffset)
}

// SrcMAC returns the Ethernet source address. p must have a Buf.
func (p *Packet) SrcMAC() MAC { return MAC(p.Buf[VNetHdrLen+6 : VNetHdrLen+12]) }

// DstMAC returns the Ethernet destination address. p must have a Buf.
func (p *Packet) DstMAC() MAC { return MAC(p.Buf[VNetHdrLen : VNetHdrLen+6]) }

// PutHead writes to dst[:HeadLen] the headers before the IP header of a superframe: p.VNet and an Ethernet header. dst
// may be p.Buf.
func (p *Packet) PutHead(dst []byte, srcMAC, dstMAC MAC) {
	dst = dst[:HeadLen]
	v := p.VNet
	v.HdrLen = 0
	if p.isPartial() {
		v.HdrLen = uint16(EthLen + p.Payload)
	}
	v.Encode(dst)
	copy(dst[VNetHdrLen:], dstMAC[:])
	copy(dst[VNetHdrLen+6:], srcMAC[:])
	be.PutUint16(dst[VNetHdrLen+12:], p.EtherType)
}

// checkOffload compares the virtio-net header of the frame, whose sender may have written anything there, with what was
// parsed, and normalises it to one of the forms that the package documentation lists.
func (p *Packet) checkOffload() Fault {
	v := &p.VNet
	if v.Flags&^(NeedsCsum|DataValid) != 0 {
		return BadOffload
	}
	if v.Flags&NeedsCsum == 0 {
		if v.GSOType != GSONone {
			return BadOffload
		}
		*v = VNetHdr{} // DataValid is only the sender's claim: the receiver verifies
		return Good
	}
	v.Flags = NeedsCsum
	proto := p.Tuple.Proto
	// With a fragment header of any kind (fragAt) the sender's kernel has completed the checksum.
	if p.Frag != NoFrag || p.fragAt != 0 || proto != TCP && proto != UDP {
		return BadOffload
	}
	off, _ := csumOffset(proto)
	if int(v.CsumStart) != EthLen+p.L4 || int(v.CsumOffset) != off {
		return BadOffload
	}
	if proto == UDP && int(be.Uint16(p.IP[p.L4+4:])) != len(p.IP)-p.L4 {
		return BadOffload // the kernel sums up to the end of the packet, not of the datagram
	}
	v.HdrLen = uint16(EthLen + p.Payload)
	if v.GSOType == GSONone {
		v.GSOSize = 0
		return Good
	}
	return p.checkGSO()
}

// checkGSO checks the segmentation fields of a packet whose checksum fields are right.
func (p *Packet) checkGSO() Fault {
	v := &p.VNet
	size, n := int(v.GSOSize), len(p.IP)-p.Payload
	if size == 0 || n == 0 {
		return BadOffload
	}
	limit := maxTCPSegments
	switch {
	case p.Tuple.Proto == UDP:
		if v.GSOType != GSOUDPL4 {
			return BadOffload
		}
		limit = maxUDPSegments
	case v.GSOType&^GSOECN == GSOTCPv4 && p.EtherType == EtherIPv4, v.GSOType&^GSOECN == GSOTCPv6 && p.EtherType == EtherIPv6:
		// Every segment repeats the flags. SYN or RST in all of them would change the meaning of the sequence numbers.
		if p.TCPFlags&(SYN|RST) != 0 || size < minGSOSize {
			return BadOffload
		}
	default:
		return BadOffload
	}
	if n <= size { // one segment: the kernel ignores the GSO fields too (virtio_net_hdr_to_skb)
		v.GSOType, v.GSOSize = GSONone, 0
		return Good
	}
	if (n+size-1)/size > limit {
		return BadOffload
	}
	return Good
}
