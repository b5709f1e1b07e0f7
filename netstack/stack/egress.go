package stack

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/refusal"
)

// What pods send outside, over host sockets. Packets are those of pods, with verified checksums, and borrowed.

// Datagram sends the datagrams of p, which is whole. The errors are those of udprelay.Relay.Send.
func (s *Stack) Datagram(p *packet.Packet) (mtu int, err error) { return s.udp.Send(p) }

// Ping sends an echo request, which is whole. The errors are those of pingrelay.Relay.Send.
func (s *Stack) Ping(p *packet.Packet) (mtu int, err error) { return s.pings.Send(p) }

// Fragment takes a fragment of UDP, TCP or ICMP. When all are there, they go the way of whole packets.
func (s *Stack) Fragment(p *packet.Packet, turn *Turn) {
	s.gather(p, func(whole *packet.Packet) {
		whole.DontFragment = false // the pod cut it itself
		var err error
		switch {
		case whole.Tuple.Proto == packet.UDP:
			_, err = s.udp.Send(whole)
		case whole.Tuple.Proto == packet.TCP:
			s.relay.Deliver(whole, &turn.tcp, true)
		case whole.IsEchoRequest():
			_, err = s.pings.Send(whole)
		}
		if why, ok := refusal.Kind(err); ok {
			s.refuse(whole, why, packet.Addr{})
		}
	})
}

// gather takes a fragment and calls use with the packet when that is complete and has a right checksum.
func (s *Stack) gather(p *packet.Packet, use func(whole *packet.Packet)) {
	s.pieces.Add(p, func(ip []byte) {
		var whole packet.Packet
		if whole.ParseIP(ip) == packet.Good && whole.ChecksumOK() {
			use(&whole)
		}
	})
}
