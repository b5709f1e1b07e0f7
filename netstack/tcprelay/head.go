package tcprelay

import (
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// head is what the IP header of a pod's SYN says of hops and priority. The host socket sends with the same values:
// networks use the traffic class, some protocols demand that their neighbour is one hop away (RFC 5082), and traceroute
// counts hops. The congestion bits are left to each connection itself.
type head struct {
	ttl, class uint8
	is4        bool
}

// usualTTL is the default of Linux. Pods, and as a rule their node, use it, so it need not be set.
const usualTTL = 64

func headOf(p *packet.Packet) head {
	const ecn = 3 // RFC 3168 5
	return head{max(p.TTL(), 1), p.TrafficClass() &^ ecn, p.Tuple.Src.Is4()}
}

func (h head) usual() bool { return h.ttl == 0 || h.ttl == usualTTL && h.class == 0 }

// apply makes a socket send with h. A pod that sets a TTL may want to know where it ran out, so the socket also keeps
// ICMP errors.
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

// hear makes a socket keep the ICMP errors that it receives, or not. An open connection must not end by such an error,
// so it keeps none.
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

// saidBy is the error of a connect that failed because of an ICMP error, with the kind and the sender of that.
type saidBy struct {
	error
	why    packet.ICMPError
	router packet.Addr
}

func (s saidBy) Unwrap() error { return s.error }
