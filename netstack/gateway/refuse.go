package gateway

import "tapestry.dev/tapestry/netstack/packet"

// refuse tells the sender of p, a pod, that it cannot reach whom it sent p to: as a router would, from the gateway's
// own address, or, when that one has no such port, in its name.
func (g *Gateway) refuse(p *packet.Packet, why packet.ICMPError) {
	from := p.Tuple.Dst
	if why != packet.PortUnreachable {
		own := g.ownAddr(from.Netip())
		if !own.IsValid() {
			return
		}
		from = packet.AddrFrom(own)
	}
	if !g.refusals.Allow(p.Tuple.Src) {
		return
	}
	var ip [1280]byte
	if n := packet.PutICMPError(ip[:], p, why, from, 0); n > 0 {
		g.sendIP(ip[:n], packet.VNetHdr{})
	}
}
