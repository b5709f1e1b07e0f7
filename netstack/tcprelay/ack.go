package tcprelay

import (
	"sync"

	"tapestry.dev/tapestry/netstack/packet"
)

// heads holds memory for segments without payload, which may have a selective acknowledgement.
var heads = sync.Pool{New: func() any { return new([headroom + 4 + 8*maxBlocks]byte) }}

// acknowledge sends a segment that only acknowledges what was received.
func (c *conn) acknowledge() {
	b := heads.Get().(*[headroom + 4 + 8*maxBlocks]byte)
	defer heads.Put(b)
	seq := c.next.Load()
	got := c.received.Load()
	h := packet.TCPHeader{Seq: seq, Ack: uint32(got >> 32), Window: uint16(got), Flags: packet.ACK}
	if c.far != nil {
		var options [4 + 8*maxBlocks]byte
		c.mu.Lock()
		if f := &c.from; f.sacks && len(f.early) > 0 {
			h.Options = putSACK(options[:], f.early, c.far.latest)
		}
		c.mu.Unlock()
	}
	c.emit(b[:], 0, &h)
}
