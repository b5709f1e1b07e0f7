package dgram

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Head is what the IP header of a datagram says besides addresses and lengths. It goes along from pods to the outside
// and back: traceroute counts by TTL, networks and far ends go by the traffic class. The node is no hop on the way.
type Head struct {
	TTL, Class   uint8
	DontFragment bool // of what is sent
}

// HeadOf is what a pod's packet says.
func HeadOf(p *packet.Packet) Head {
	return Head{max(p.TTL(), 1), p.TrafficClass(), p.DontFragment} // nobody sends a TTL of 0 (RFC 1122 3.2.1.7)
}

// Put writes h to the IP packet ip, whose IPv4 checksum is still to be made. Without a TTL it is of no packet, and
// nothing is written.
func (h Head) Put(ip []byte) {
	if h.TTL != 0 {
		packet.PutFields(ip, h.TTL, h.Class)
	}
}

func (h Head) pack() uint32 {
	n := uint32(h.TTL)<<8 | uint32(h.Class)<<16
	if h.DontFragment {
		n |= 1
	}
	return n
}

// Says is what the datagrams of a socket say now. The zero Says is a new socket's. When several goroutines send with
// different Heads, a datagram may leave with another's.
type Says struct{ last atomic.Uint32 }

// Set has the datagrams of fd say h from now on.
func (s *Says) Set(fd int, is4 bool, h Head) {
	now, was := h.pack(), s.last.Load()
	if now == was {
		return
	}
	changed := now ^ was
	if was == 0 {
		changed = ^uint32(0)
	}
	level, ttl, class := unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_TCLASS
	if is4 {
		level, ttl, class = unix.IPPROTO_IP, unix.IP_TTL, unix.IP_TOS
	}
	if changed&0xff != 0 {
		setDF(fd, is4, h.DontFragment)
	}
	if changed&0xff00 != 0 {
		_ = unix.SetsockoptInt(fd, level, ttl, int(h.TTL))
	}
	if changed&0xff0000 != 0 {
		_ = unix.SetsockoptInt(fd, level, class, int(h.Class))
	}
	s.last.Store(now)
}
