package stack

import "tapestry.dev/tapestry/netstack/packet"

// refuse tells the sender of p, a pod, that it cannot reach whom it sent p to: in the name of by, who said so outside;
// without one as a router would, from the stack's own address; or, when that one has no such port, in its name.
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
