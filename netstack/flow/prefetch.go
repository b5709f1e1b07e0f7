package flow

import (
	"unsafe"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// fetchFrom is the number of flows from which on Prefetch does anything: smaller tables stay in the core's cache.
	fetchFrom = 4096
	// fetchBatch is the number of packets that are prefetched at once: about as many reads as a core has in flight.
	fetchBatch = 32
)

// Prefetch brings into the cache what Lookup needs for each packet of a batch that is about to be looked up. In a large
// table a lookup waits for memory twice, for the index and then for the slot; the lookups of a prefetched batch wait
// about twice altogether. Prefetch changes nothing, and does not pay for fewer than a few packets.
func (t *Table) Prefetch(batch []packet.Packet) {
	if t.len.Load() < fetchFrom {
		return
	}
	for len(batch) > 0 {
		n := min(len(batch), fetchBatch)
		t.prefetch(batch[:n])
		batch = batch[n:]
	}
}

func (t *Table) prefetch(batch []packet.Packet) {
	var hashes [fetchBatch]uint64
	for i := range batch {
		h := t.hash(&batch[i].Tuple)
		hashes[i] = h
		b := unsafe.Pointer(&t.index[t.home(h)])
		fetch(b, b)
	}
	for _, h := range hashes[:len(batch)] {
		b := &t.index[t.home(h)]
		if c := b.candidates(tag(h) * eachByte); c != 0 {
			s := &t.slots[keySlot(b.keys[c.first()].Load())]
			fetch(unsafe.Pointer(s), unsafe.Pointer(&s.live))
		}
	}
}
