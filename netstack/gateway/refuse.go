package gateway

import "tapestry.dev/tapestry/netstack/packet"

// refuse tells the sender of p, a pod, that it cannot reach whom it sent p to, as a router would: from the gateway's own address.
func (g *Gateway) refuse(p *packet.Packet, why packet.ICMPError) {
	from := g.ownAddr(p.Tuple.Dst.Netip())
	if !from.IsValid() || !g.refusals.Allow(p.Tuple.Src) {
		return
	}
	var ip [1280]byte
	if n := packet.PutICMPError(ip[:], p, why, packet.AddrFrom(from), 0); n > 0 {
		g.sendIP(ip[:n], packet.VNetHdr{})
	}
}
