package tcprelay

import (
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// head is what the IP header of a pod's SYN says of hops and priority. The host's socket says the same: networks go by
// the traffic class, some protocols ask that their neighbour be one hop away (RFC 5082), and traceroute counts.
// Congestion is each connection's own.
type head struct {
	ttl, class uint8
	is4        bool
}

// usualTTL is Linux' for pods and, as a rule, for their node, where nothing has to be set.
const usualTTL = 64

func headOf(p *packet.Packet) head {
	const ecn = 3 // RFC 3168 5
	return head{max(p.TTL(), 1), p.TrafficClass() &^ ecn, p.Tuple.Src.Is4()}
}

func (h head) usual() bool { return h.ttl == 0 || h.ttl == usualTTL && h.class == 0 }

// apply has a socket say it. Who sets a TTL may want to know where it ran out.
func (h head) apply(fd int) {
	if h.usual() {
		return
	}
	level, ttl, class := unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_TCLASS
	if h.is4 {
		level, ttl, class = unix.IPPROTO_IP, unix.IP_TTL, unix.IP_TOS
	}
	_ = unix.SetsockoptInt(fd, level, ttl, int(h.ttl))
	_ = unix.SetsockoptInt(fd, level, class, int(h.class))
	h.hear(fd, true)
}

// hear has a socket keep the ICMP errors that it hears, or not: a connection that is open ends by none.
func (h head) hear(fd int, on bool) {
	level, name, value := unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 0
	if h.is4 {
		level, name = unix.IPPROTO_IP, unix.IP_RECVERR
	}
	if on {
		value = 1
	}
	_ = unix.SetsockoptInt(fd, level, name, value)
}

// saidBy is why a connect came to nothing as an ICMP error said it, and who that was from.
type saidBy struct {
	error
	why    packet.ICMPError
	router packet.Addr
}

func (s saidBy) Unwrap() error { return s.error }
