package stack

import "tapestry.dev/tapestry/netstack/packet"

// refuse tells the sender of p, a pod, that the destination cannot be reached. The ICMP error comes from by, the router
// or host outside that says so. If by is zero, it comes from the stack's own address, as from a router. If the
// destination has no such port, it comes from the destination's address.
func (s *Stack) refuse(p *packet.Packet, why packet.ICMPError, by packet.Addr) {
	from := p.Tuple.Dst
	switch router := by.Netip(); {
	case why == packet.PortUnreachable:
	case by.Is4() == from.Is4() && router.IsGlobalUnicast():
		from = by
	default:
		own := s.ownAddr(from.Netip())
		if !own.IsValid() {
			return
		}
		from = packet.AddrFrom(own)
	}
	if !s.refusals.Allow(s.owner(p.Tuple.Src)) {
		return
	}
	var ip [1280]byte
	if n := packet.PutICMPError(ip[:], p, why, from, 0); n > 0 {
		s.sendIP(ip[:n], packet.VNetHdr{})
	}
}
