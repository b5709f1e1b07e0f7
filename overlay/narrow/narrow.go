// Package narrow cuts IPv6 packets for paths on which the tunnel leaves less than IPv6's least MTU.
//
// IPv6 relies on 1,280 bytes everywhere, and asks of links that carry less to cut and join below it (RFC 8200 5). So
// packets up to that size are cut before they are encrypted, and the far node joins them behind the tunnel. WireGuard's
// datagrams stay whole, because firewalls and NATs lose fragments of UDP, and routers that send no ICMP would not have
// them cut to the right size. A stock WireGuard peer, or a node that does not know of pieces, passes them on as the
// fragments that they are, and the receiver joins them.
package narrow

import (
	"math/rand/v2"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
)

// Cutter cuts what a packet.Segmenter writes. Make it with New. It has one caller at a time.
type Cutter struct {
	cut    packet.Cutter
	id     uint32
	outer  int // length of the outer header of the packets that are cut now
	room   int // the largest packet in bytes that fits
	packet [maxOuter + addressing.MinMTU]byte
}

const maxOuter = 40

// New returns a Cutter. Its identifications begin anywhere, so that they are others than before a restart.
func New() *Cutter { return &Cutter{id: rand.Uint32()} }

// Begin reports whether IPv6 packets of size bytes must be cut for a path with room for that many bytes, and if so
// prepares Next for a Segmenter that encapsulates them by via (nil: not at all). Packets that are larger than IPv6's
// least MTU are not cut: their senders learn what fits.
func (c *Cutter) Begin(size, room int, via *packet.Encap) bool {
	if size <= room {
		return false
	}
	c.outer, c.room = 0, room
	if via != nil {
		c.outer = addressing.Encap(!via.Src.Is4())
	}
	return size-c.outer <= addressing.MinMTU
}

// Next writes to dst the next packet of s, or the next piece of one, and returns its length, 0 when there is none left.
// cut is true for the first piece of a packet.
func (c *Cutter) Next(s *packet.Segmenter, dst []byte) (n int, cut bool) {
	if n = c.cut.Next(dst); n > 0 {
		return n, false
	}
	n = s.Next(c.packet[:])
	if n > c.room {
		c.id++
		if c.cut.Reset(c.packet[:n], c.outer, c.room, c.id) {
			return c.cut.Next(dst), true
		}
		// Its headers leave no room for data; it is sent as it is.
	}
	return copy(dst, c.packet[:n]), false
}
