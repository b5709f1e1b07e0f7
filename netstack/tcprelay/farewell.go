package tcprelay

import (
	"errors"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/refusal"
)

// lastWord is what a pod is sent when a connection ends.
type lastWord uint8

const (
	nothing lastWord = iota
	aReset
	anError // an ICMP error
)

// farewell decides what a pod is sent when a connection in state was ends because of why. failed is the error of a
// failed connect. If the far end or a router refused, the pod is told so. After a time-out the pod is sent nothing,
// because nothing was received.
func farewell(was state, why uint32, failed error) (lastWord, packet.ICMPError) {
	if why&(hostGone|aborted|leaving) == 0 || why&podGone != 0 {
		return nothing, 0
	}
	if was != connecting {
		return aReset, 0
	}
	var by saidBy
	switch kind, ok := refusal.Kind(failed); {
	case errors.As(failed, &by):
		return anError, by.why
	case errors.Is(failed, errNoPort): // as its own kernel would tell it at once, and no try of the next seconds helps
		return anError, packet.HostUnreachable
	case !ok:
		return nothing, 0
	case kind == packet.PortUnreachable:
		return aReset, 0
	default:
		return anError, kind
	}
}

// unreachable answers the pod's SYN with an ICMP error from by; the zero address stands for no sender outside.
func (c *conn) unreachable(kind packet.ICMPError, by packet.Addr) {
	h := packet.TCPHeader{Seq: uint32(c.received.Load()>>32) - 1, Flags: packet.SYN}
	b := c.to.head[:]
	head, vnet := packet.PutTCP(b, &c.key, &h, 0, 0)
	var p packet.Packet
	if p.ParseIP(b[:head]) == packet.Good {
		p.VNet = vnet
		c.r.o.Refuse(&p, kind, by)
	}
}

// reset resets the pod's end. An unanswered SYN is refused (RFC 9293 3.10.7.1). The pod accepts a reset only at the
// number that it expects next (RFC 5961 3.2). That is the number before the unacknowledged data if the pod had no room
// for it, and the number after it otherwise. So both are sent.
func (c *conn) reset(was state) {
	h := packet.TCPHeader{Seq: c.next.Load(), Ack: uint32(c.received.Load() >> 32), Flags: packet.RST | packet.ACK}
	switch was {
	case connecting:
		h.Seq = 0
	case greeting:
		h.Flags = packet.RST
	case open:
		if acked := uint32(c.acked.Load() >> 32); acked != h.Seq {
			before := h
			before.Seq = acked
			c.emit(c.to.head[:], 0, &before)
		}
	}
	c.emit(c.to.head[:], 0, &h)
}
