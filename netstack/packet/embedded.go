package packet

// Embedded makes inner a view of the packet that p, an ICMP error, quotes: its tuple, and L4 and Payload as far as the
// quote goes (at least 8 bytes of L4). It is false when p is no error, or quotes too little, another family, a later
// fragment, or an ICMP error.
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

// RewriteEmbedded translates p, an ICMP error for which Embedded is true: its own addresses, and addresses and ports
// (or echo identifier) of the packet it quotes, which become those of inner, with all checksums. Quoted checksums that
// were cut off stay, and so does the CRC of an SCTP packet not quoted whole.
func (p *Packet) RewriteEmbedded(outerSrc, outerDst Addr, inner *Tuple) {
	var in Packet
	if !p.Embedded(&in) {
		return
	}
	// The changed bytes lie in here; the region starts at an even offset of the ICMP message.
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
