package flow

import (
	"unsafe"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// fetchFrom is the size from which on Prefetch does anything: smaller tables stay in the cache of the core.
	fetchFrom = 4096
	// fetchBatch is the number of packets that are fetched for at once, about as many as a core has reads under way.
	fetchBatch = 32
)

// Prefetch brings into the cache what Lookup needs for each packet of a batch that is about to be looked up one by
// one. A lookup waits for memory twice in a large table, for the index and then for the slot; the lookups of a batch
// that was fetched for wait about twice altogether. It changes nothing, and is of no use for fewer than a few
// packets.
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
