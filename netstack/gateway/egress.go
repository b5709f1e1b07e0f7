package gateway

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/refusal"
)

// What pods send outside, over host sockets. Packets are those of pods, with verified checksums, and borrowed.

// Datagram sends the datagrams of p, which is whole. The errors are those of udprelay.Relay.Send.
func (g *Gateway) Datagram(p *packet.Packet) (mtu int, err error) { return g.udp.Send(p) }

// Ping sends an echo request, which is whole. The errors are those of pingrelay.Relay.Send.
func (g *Gateway) Ping(p *packet.Packet) (mtu int, err error) { return g.pings.Send(p) }

// Fragment takes a fragment of UDP, TCP or ICMP. When all are there, they go the way of whole packets.
func (g *Gateway) Fragment(p *packet.Packet, turn *Turn) {
	g.gather(p, func(whole *packet.Packet) {
		whole.DontFragment = false // the pod cut it itself
		var err error
		switch {
		case whole.Tuple.Proto == packet.UDP:
			_, err = g.udp.Send(whole)
		case whole.Tuple.Proto == packet.TCP:
			g.relay.Deliver(whole, &turn.tcp, true)
		case whole.IsEchoRequest():
			_, err = g.pings.Send(whole)
		}
		if why, ok := refusal.Kind(err); ok {
			g.refuse(whole, why)
		}
	})
}

// gather takes a fragment and calls use with the packet when that is complete and has a right checksum.
func (g *Gateway) gather(p *packet.Packet, use func(whole *packet.Packet)) {
	g.pieces.Add(p, func(ip []byte) {
		var whole packet.Packet
		if whole.ParseIP(ip) == packet.Good && whole.ChecksumOK() {
			use(&whole)
		}
	})
}
