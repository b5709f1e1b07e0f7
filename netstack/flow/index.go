package flow

import (
	"math/bits"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	bucketKeys = 7
	maxProbe   = 16 // buckets that a key may be in, its home first
	stripes    = 256
)

// bucket is one cache line of the index. Word 0 counts the keys that have their home here and live in a later bucket, and
// says how many buckets later at most (<< 32). The others are tag << 32 | (slot + 1) << 1 | direction, or 0.
type bucket [1 + bucketKeys]atomic.Uint64

// indexLen is the number of buckets for capacity flows: 4.5 of their 7 keys are taken when the table is full.
func indexLen(capacity int) int { return max((capacity*4+8)/9, maxProbe) }

func word(h uint64, i uint32, d Dir) uint64 { return h<<32 | uint64(i+1)<<1 | uint64(d) }

func wordSlot(w uint64) uint32 { return uint32(w)>>1 - 1 }

func (t *Table) home(h uint64) uint64 {
	n, _ := bits.Mul64(h, uint64(len(t.index)))
	return n
}

func (t *Table) after(b uint64) uint64 {
	if b++; b == uint64(len(t.index)) {
		return 0
	}
	return b
}

// place is where a key was found: the slot, its sequence number then, and the key's direction.
type place struct {
	slot, seq uint32
	dir       Dir
}

// find looks a tuple up. It takes no lock; under the stripe of h the answer stays true.
func (t *Table) find(tp *packet.Tuple, h uint64) (p place, ok bool) {
	n := t.home(h)
	b := &t.index[n]
	for j := 1; j < len(b); j++ {
		if w := b[j].Load(); uint32(w>>32) == uint32(h) && w != 0 {
			if p, ok = t.check(w, tp); ok {
				return p, true
			}
		}
	}
	if later := b[0].Load() >> 32; later != 0 {
		return t.findLater(n, later, tp, h)
	}
	return place{}, false
}

func (t *Table) findLater(n, buckets uint64, tp *packet.Tuple, h uint64) (p place, ok bool) {
	for range buckets {
		n = t.after(n)
		b := &t.index[n]
		for j := 1; j < len(b); j++ {
			if w := b[j].Load(); uint32(w>>32) == uint32(h) && w != 0 {
				if p, ok = t.check(w, tp); ok {
					return p, true
				}
			}
		}
	}
	return place{}, false
}

func (t *Table) check(w uint64, tp *packet.Tuple) (place, bool) {
	i, d := wordSlot(w), Dir(w&1)
	seq, ok := t.slots[i].matches(tp, d)
	return place{i, seq, d}, ok
}

// link adds a word; false when all its buckets are full. The caller holds the stripe of h.
func (t *Table) link(h uint64, w uint64) bool {
	home := t.home(h)
	n := home
	for d := range uint64(maxProbe) {
		b := &t.index[n]
		for j := 1; j < len(b); j++ {
			if b[j].Load() != 0 {
				continue
			}
			// Counted before it is there: a reader that finds no count looks no further than its home.
			t.index[home].overflow(1, d)
			if b[j].CompareAndSwap(0, w) {
				return true
			}
			t.index[home].overflow(-1, d)
		}
		n = t.after(n)
	}
	return false
}

// unlink removes a word, if it is there. The caller holds the stripe of h.
func (t *Table) unlink(h uint64, w uint64) {
	home := t.home(h)
	n := home
	for d := range uint64(maxProbe) {
		b := &t.index[n]
		for j := 1; j < len(b); j++ {
			if b[j].Load() == w {
				b[j].Store(0)
				t.index[home].overflow(-1, d)
				return
			}
		}
		n = t.after(n)
	}
}

// overflow counts a key, or one less, that lives d buckets after its home b.
func (b *bucket) overflow(change int32, d uint64) {
	if d == 0 {
		return
	}
	for {
		old := b[0].Load()
		count, farthest := uint32(old)+uint32(change), max(old>>32, d)
		if count == 0 {
			farthest = 0
		}
		if b[0].CompareAndSwap(old, farthest<<32|uint64(count)) {
			return
		}
	}
}

// lock takes the stripes of two hashes.
func (t *Table) lock(a, b uint64) {
	i, j := a%stripes, b%stripes
	if i > j {
		i, j = j, i
	}
	t.stripe[i].Lock()
	if i != j {
		t.stripe[j].Lock()
	}
}

func (t *Table) unlock(a, b uint64) {
	i, j := a%stripes, b%stripes
	t.stripe[i].Unlock()
	if i != j {
		t.stripe[j].Unlock()
	}
}
