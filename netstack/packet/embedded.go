package packet

// Embedded makes inner a view of the packet that the ICMP error p quotes: its tuple, and L4 and Payload as far as the
// quote goes. Embedded returns false when p is no ICMP error, and when the quoted packet has less than 8 bytes of L4,
// is of another family, is a later fragment, or is an ICMP error itself.
func (p *Packet) Embedded(inner *Packet) bool {
	if p.Frag != NoFrag || !p.isICMPError() || p.EtherType == EtherIPv6 && p.ICMPType >= 128 {
		return false
	}
	inner.reset()
	if inner.parseNet(p.IP[p.L4+8:], true) != Good || inner.EtherType != p.EtherType || inner.Frag == LaterFrag {
		return false
	}
	b := inner.IP[min(inner.L4, len(inner.IP)):]
	if len(b) < 8 {
		return false
	}
	inner.ports(b)
	if inner.isICMPError() {
		return false
	}
	n := minL4(inner.Tuple.Proto)
	if inner.Tuple.Proto == TCP && len(b) > 12 {
		n = max(n, int(b[12]>>4)*4)
	}
	if inner.Payload = min(inner.L4+n, len(inner.IP)); n == 0 {
		inner.Payload = len(inner.IP)
	}
	return true
}

// RewriteEmbedded translates p, an ICMP error for which Embedded returns true. It changes p's own addresses to outerSrc
// and outerDst, and the addresses and ports (or echo identifier) of the quoted packet to those of inner, with all
// checksums. A quoted checksum that was cut off stays as it is, and so does the CRC of an SCTP packet that is not
// quoted whole.
func (p *Packet) RewriteEmbedded(outerSrc, outerDst Addr, inner *Tuple) {
	var in Packet
	if !p.Embedded(&in) {
		return
	}
	// All changed bytes lie in this region, which starts at an even offset of the ICMP message.
	region := in.IP[:min(len(in.IP), in.L4+20)]
	before := Checksum(region, 0)
	in.rewriteL4(inner, in.putAddrs(inner))
	after := Checksum(region, 0)

	to := Tuple{Src: outerSrc, Dst: outerDst, SrcPort: p.Tuple.SrcPort, DstPort: p.Tuple.DstPort}
	delta := p.putAddrs(&to)
	if p.EtherType == EtherIPv4 {
		delta = 0 // no pseudo header
	}
	update(p.IP[p.L4+2:], delta+uint64(^before)+uint64(after))
	p.Tuple.Src, p.Tuple.Dst = outerSrc, outerDst
}
