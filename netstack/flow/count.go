package flow

import (
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/packet"
)

// Counters are written by plain additions, not through sync/atomic. Nearly always one goroutine at a time has the
// packets of a flow's direction; where two have, a packet may go uncounted. An atomic addition would make a packet of a
// known flow a twentieth more expensive. All counters are aligned, so none is ever half written.
//
// A slot has only small counters, beside what a lookup has just read, so that counting touches no further cache line. A
// counter that is full is moved to the ledger. A process killed at that moment may leave packets counted twice.

// A slot's counter is one word: bytes << countBytes | packets. It is full at countFull packets, whose bytes it holds,
// since no packet has more than 64 KiB and a header.
const (
	countBytes   = 8
	countPackets = 1<<countBytes - 1
	countFull    = 1 << 7
)

// Count is what was sent in one direction of a flow, in bytes of IP; a superframe is one packet. Later fragments are
// not counted.
type Count struct{ Bytes, Packets uint64 }

// Count counts the packet of a hit, with its bytes of IP, and remembers what its segment says of the connection's
// streams: a later reset is judged by that. It is called for packets that go on. When the flow is gone, the packet
// counts for nobody, or for the next flow in the slot.
func (t *Table) Count(hit *Hit, bytes int, seg packet.Segment) {
	if i := hit.Ref & (maxSlots - 1); int(i) < len(t.slots) {
		s := &t.slots[i]
		if seg.Flags != 0 {
			s.marks.learn(hit.Dir, seg)
		}
		if s.count(hit.Dir&1, uint32(bytes)) {
			s.spill(&t.ledgers[i], hit.Dir&1)
		}
	}
}

// count adds a packet, and reports whether the slot's counter is full.
//
//go:norace
func (s *slot) count(d Dir, bytes uint32) bool {
	s.counts[d] += bytes<<countBytes + 1
	return s.counts[d]&countFull != 0
}

// spill moves the slot's counts to the ledger.
//
//go:norace
func (s *slot) spill(l *ledger, d Dir) {
	n := s.counts[d]
	l.bytes[d] += uint64(n >> countBytes)
	l.packets[d] += uint64(n & countPackets)
	s.counts[d] = 0
}

// countsWith returns the sums of slot and ledger.
//
//go:norace
func (s *slot) countsWith(l *ledger) (c [2]Count) {
	for d := range c {
		for { // a count in the slot gets smaller only by spill: then read again
			n := atomic.LoadUint32(&s.counts[d])
			c[d].Bytes = atomic.LoadUint64(&l.bytes[d]) + uint64(n>>countBytes)
			c[d].Packets = atomic.LoadUint64(&l.packets[d]) + uint64(n&countPackets)
			if atomic.LoadUint32(&s.counts[d]) >= n {
				break
			}
		}
	}
	return c
}

// setCounts sets the counts of a new flow.
//
//go:norace
func (s *slot) setCounts(l *ledger, c *[2]Count) {
	for d := range c {
		s.counts[d], l.bytes[d], l.packets[d] = 0, c[d].Bytes, c[d].Packets
	}
}
