package flow

import "sync/atomic"

// Counters are written by plain additions, not through sync/atomic. Nearly always one goroutine at a time has the
// packets of a flow's direction; where two have, a packet may go uncounted. An atomic addition would make a packet of a
// known flow a twentieth more expensive. All counters are aligned, so none is ever half written.
//
// A slot has only small counters, beside what a lookup has just read, so that counting touches no further cache line. A
// counter that is full is moved to the ledger. A process killed at that moment may leave packets counted twice.

// packetsMany is how many packets a slot can count. Its byte counter holds their bytes, since no packet has more than
// 64 KiB and a header.
const packetsMany = 1 << 15

// Count is what was sent in one direction of a flow, in bytes of IP; a superframe is one packet. Later fragments are
// not counted.
type Count struct{ Bytes, Packets uint64 }

// Count counts the packet of a hit, with its bytes of IP. If the flow is gone, the packet counts for nobody, or for the
// next flow in the slot.
func (t *Table) Count(hit *Hit, bytes int) {
	if i := hit.Ref & (maxSlots - 1); int(i) < len(t.slots) {
		if s := &t.slots[i]; s.count(hit.Dir&1, uint32(bytes)) {
			s.spill(&t.ledgers[i], hit.Dir&1)
		}
	}
}

// count adds a packet, and reports whether the slot's counter is full.
//
//go:norace
func (s *slot) count(d Dir, bytes uint32) bool {
	s.bytes[d] += bytes
	s.packets[d]++
	return s.packets[d] >= packetsMany
}

// spill moves the slot's counts to the ledger.
//
//go:norace
func (s *slot) spill(l *ledger, d Dir) {
	l.bytes[d] += uint64(s.bytes[d])
	s.bytes[d] = 0
	l.packets[d] += uint32(s.packets[d] / packetsMany)
	s.packets[d] %= packetsMany
}

// counts returns the sums of slot and ledger.
//
//go:norace
func (s *slot) counts(l *ledger) (c [2]Count) {
	for d := range c {
		for { // a count in the slot gets smaller only by spill: then read again
			b, p := atomic.LoadUint32(&s.bytes[d]), s.packets[d]
			c[d].Bytes = atomic.LoadUint64(&l.bytes[d]) + uint64(b)
			c[d].Packets = uint64(atomic.LoadUint32(&l.packets[d]))*packetsMany + uint64(p)
			if atomic.LoadUint32(&s.bytes[d]) >= b && s.packets[d] >= p {
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
		l.bytes[d], s.bytes[d] = c[d].Bytes, 0
		l.packets[d], s.packets[d] = uint32(c[d].Packets/packetsMany), uint16(c[d].Packets%packetsMany)
	}
}
