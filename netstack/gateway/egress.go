package gateway

import (
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"tapestry.dev/tapestry/netstack/packet"
)

// Outside sends the datagrams of p, which a pod sent and whose checksum was verified, to the outside over a host socket. p is
// whole: fragments go by Deliver. The errors are those of udprelay.Relay.Send.
func (g *Gateway) Outside(p *packet.Packet) (mtu int, err error) { return g.udp.Send(p) }

// strayUDP takes a datagram for which the stack has no endpoint, one that came in fragments as a rule, and sends it on its way
// to the outside.
func (g *Gateway) strayUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	pod, to := fromAddress(id.RemoteAddress), fromAddress(id.LocalAddress)
	if g.owns(packet.AddrFrom(to)) {
		return false // the stack answers port unreachable
	}
	datagram := slices.Concat(pkt.TransportHeader().Slice(), pkt.Data().AsRange().ToSlice())
	var ip []byte
	if to.Is4() {
		ip = ip4Header(pod, to, packet.UDP, len(datagram))
	} else {
		ip = ip6Header(pod, to, packet.UDP, len(datagram))
	}
	var p packet.Packet
	if p.ParseIP(append(ip, datagram...)) != packet.Good || !p.ChecksumOK() {
		return true
	}
	p.DontFragment = false // the pod cut it into fragments itself
	_, _ = g.udp.Send(&p)
	return true
}
