package packet

// AnswerARP turns the ARP request in the superframe buf in place into a reply that names mac for whatever address was
// asked, since the node is the next hop to everything. It returns the length of the reply. It returns 0 for anything
// but a request, and for a request about the sender's own address: announcements and probes for duplicates (RFC 5227).
func AnswerARP(buf []byte, mac MAC) (n int) {
	const size = HeadLen + 28
	if len(buf) < size || be.Uint16(buf[VNetHdrLen+12:]) != EtherARP {
		return 0
	}
	eth, arp := buf[VNetHdrLen:HeadLen], buf[HeadLen:size]
	// Ethernet, IPv4, their lengths, request (RFC 826).
	if be.Uint64(arp) != 0x0001_0800_06_04_0001 {
		return 0
	}
	sender, target := be.Uint32(arp[14:]), be.Uint32(arp[24:])
	if sender == target || sender == 0 || target == 0 {
		return 0
	}
	clear(buf[:VNetHdrLen])
	copy(eth, eth[6:12])
	copy(eth[6:], mac[:])
	arp[7] = 2
	copy(arp[18:28], arp[8:18])
	copy(arp[8:], mac[:])
	be.PutUint32(arp[14:], target)
	return size
}

// Neighbour discovery (RFC 4861).
const (
	ndSolicit      = 135
	ndAdvertise    = 136
	ndTargetLink   = 2          // option: target link-layer address
	ndAdvertiseAll = 0xe0000000 // flags: router, solicited, override
)

// AnswerNS turns the neighbour solicitation in p.Buf in place into an advertisement that names mac for whatever address
// was asked. It returns the length of the superframe; p must not be used afterwards. It returns 0 for anything but a
// valid solicitation (RFC 4861 7.1.1), for a probe for duplicates, and where Buf lacks the capacity for an option of 8
// bytes, which the solicitation may have lacked.
func AnswerNS(p *Packet, mac MAC) (n int) {
	const size = HeadLen + 40 + 32
	if p.Buf == nil || cap(p.Buf) < size || !p.isSolicitation() {
		return 0
	}
	buf := p.Buf[:size]
	eth, ip := buf[VNetHdrLen:HeadLen], buf[HeadLen:]
	target := Addr(ip[48:64])
	clear(buf[:VNetHdrLen])
	copy(eth, eth[6:12])
	copy(eth[6:], mac[:])
	src := p.Tuple.Src
	put6(ip, len(ip), ICMPv6, &target, &src)
	ip[7] = 255
	nd := ip[40:]
	nd[0], nd[1] = ndAdvertise, 0
	be.PutUint32(nd[4:], ndAdvertiseAll)
	nd[24], nd[25] = ndTargetLink, 1
	copy(nd[26:], mac[:])
	setL4Checksum(ip, 40, ICMPv6)
	return size
}

// isSolicitation reports whether p is a valid solicitation about somebody other than its sender.
func (p *Packet) isSolicitation() bool {
	if p.EtherType != EtherIPv6 || p.Tuple.Proto != ICMPv6 || p.ICMPType != ndSolicit || p.ICMPCode != 0 ||
		p.L4 != 40 || p.Frag != NoFrag || p.IP[7] != 255 || len(p.IP) < 64 || p.isPartial() {
		return false
	}
	target, src, dst := Addr(p.IP[48:64]), p.Tuple.Src, p.Tuple.Dst
	if target[0] == 0xff || target == (Addr{}) || src == target || src == (Addr{}) || src[0] == 0xff {
		return false
	}
	// Solicited-node multicast: ff02::1:ff00:0/104 with the last three bytes of the target (RFC 4291 2.7.1).
	node := Addr{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]}
	if dst != target && dst != node {
		return false
	}
	for opt := p.IP[64:]; len(opt) > 0; opt = opt[int(opt[1])*8:] {
		if len(opt) < 8 || opt[1] == 0 || int(opt[1])*8 > len(opt) {
			return false
		}
	}
	return p.ChecksumOK()
}
