package dgram

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Head is what the IP header of a datagram says besides addresses and lengths. It is passed on from pods to the outside
// and back: traceroute counts by the TTL, and networks and far ends use the traffic class. The node does not count as a
// hop.
type Head struct {
	TTL, Class   uint8
	DontFragment bool // of sent datagrams only
}

// HeadOf returns the Head of a pod's packet.
func HeadOf(p *packet.Packet) Head {
	return Head{max(p.TTL(), 1), p.TrafficClass(), p.DontFragment} // a TTL of 0 must not be sent (RFC 1122 3.2.1.7)
}

// Put writes h to the IP packet ip. The caller computes the IPv4 checksum afterwards. If h has no TTL it comes from no
// packet, and Put writes nothing.
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

// Says records the Head with which a socket sends at present. The zero Says is that of a new socket. If several
// goroutines send with different Heads, a datagram may leave with the Head of another.
type Says struct{ last atomic.Uint32 }

// Set makes fd send with h from now on.
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
