package stack

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/refusal"
)

// The methods in this file send packets of pods to the outside over host sockets. The packets' checksums are verified,
// and the methods do not keep them.

// Datagram sends the datagrams of p, which is unfragmented. Its results are those of udprelay.Relay.Send.
func (s *Stack) Datagram(p *packet.Packet) (mtu int, err error) { return s.udp.Send(p) }

// Ping sends an echo request, which is unfragmented. Its results are those of pingrelay.Relay.Send.
func (s *Stack) Ping(p *packet.Packet) (mtu int, err error) { return s.pings.Send(p) }

// Fragment adds a fragment of a UDP, TCP or ICMP packet. A packet that it completes is sent like an unfragmented one.
func (s *Stack) Fragment(p *packet.Packet, turn *Turn) {
	s.gather(p, func(whole *packet.Packet) {
		whole.DontFragment = false // the pod has fragmented it
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

// gather adds a fragment, and calls use with the packet if it is complete and its checksum is right.
func (s *Stack) gather(p *packet.Packet, use func(whole *packet.Packet)) {
	s.pieces.Add(p, s.owner(p.Tuple.Src), func(ip []byte) {
		var whole packet.Packet
		if whole.ParseIP(ip) == packet.Good && whole.ChecksumOK() {
			use(&whole)
		}
	})
}
