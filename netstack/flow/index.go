package flow

import (
	"math/bits"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	bucketKeys = 12
	maxProbe   = 16 // buckets that a key may be in, its home first
	stripes    = 256
)

// bucket is one cache line of the index. Byte j of tags is the tag of key j, or 0 when there is none; four bytes are
// over, and hold the count of the keys that have their home here and live in a later bucket (bits 48 to 63 of
// tags[1]), and how many buckets later at most (bits 40 to 47). A key is slot << 8 | direction << 7 | six more bits
// of the hash << 1 | 1, and 0 when there is none. It is there before its tag is, and goes after it.
type bucket struct {
	tags [2]atomic.Uint64
	keys [bucketKeys]atomic.Uint32
}

const (
	eachByte = 0x0101010101010101
	highBits = eachByte << 7

	slotShift, dirShift = 8, 7

	taken      = 1
	moreTag    = 1<<dirShift - 2
	countShift = 48
	farShift   = 40
)

// indexLen is the number of buckets for capacity flows: 8 of their 12 keys are taken when the table is full.
func indexLen(capacity int) int { return max((capacity+3)/4, maxProbe) }

// The bucket is found by the high bits of the hash, so the tag is of low ones.
func tag(h uint64) uint64 { return max(h&0xff, 1) }

// key is what the index knows of a tuple.
func key(h uint64, i uint32, d Dir) uint32 { return i<<slotShift | uint32(d)<<dirShift | more(h) }

// more is what a key holds of the hash, besides the tag.
func more(h uint64) uint32 { return uint32(h>>8)&moreTag | taken }

func keySlot(k uint32) uint32 { return k >> slotShift }

func keyDir(k uint32) Dir { return Dir(k >> dirShift & 1) }

// keyFits tells whether a key found by its tag may be that of hash h.
func keyFits(k uint32, h uint64) bool { return (k^more(h))&(moreTag|taken) == 0 }

// candidates marks the keys whose tag is the one that is in every byte of tags, and rarely one more. It looks at all
// of them without a branch: where in its bucket a key is cannot be foretold, and a branch on it would be guessed
// wrong, which costs more than the whole comparison, and keeps the processor from beginning with the next packet
// meanwhile.
func (b *bucket) candidates(tags uint64) candidates {
	lo, hi := b.tags[0].Load()^tags, b.tags[1].Load()^tags
	// A byte that is 0 borrows, which sets its high bit; one after it which is 1 may be taken for 0.
	return candidates((lo-eachByte)&^lo&highBits>>7 | (hi-eachByte)&^hi&(highBits&0xffffffff)>>3)
}

// candidates has bit 8*j set for key j up to 7, and bit 8*(j-8) + 4 for a later one.
type candidates uint64

// first gives the number of a key that is marked, by a product that brings it into the high bits: of the constant's
// digits, j is 8*j bits below the highest one when j is up to 7, and 4 bits more when it is j-8.
func (c candidates) first() int { return int(uint64(c&-c) * 0x08192a3b40506070 >> 60) }

func (c candidates) rest() candidates { return c & (c - 1) }

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

// find looks a tuple up for a writer, expired or not. It takes no lock; under the stripe of h the answer stays true.
// It searches as get does, which readers use.
func (t *Table) find(tp *packet.Tuple, h uint64) (p place, ok bool) {
	tags, n := tag(h)*eachByte, t.home(h)
	for d, last := uint32(0), uint32(0); ; d++ {
		b := &t.index[n]
		for c := b.candidates(tags); c != 0; c = c.rest() {
			k := b.keys[c.first()].Load()
			if !keyFits(k, h) {
				continue
			}
			p.slot, p.dir = keySlot(k), keyDir(k)
			if p.seq, ok = t.slots[p.slot].matches(tp, p.dir); ok {
				return p, true
			}
		}
		if d == 0 {
			last = b.farthest()
		}
		if d == last {
			return place{}, false
		}
		n = t.after(n)
	}
}

// farthest says how many buckets after b, their home, keys live at most.
func (b *bucket) farthest() uint32 { return uint32(b.tags[1].Load()>>farShift) & 0xff }

// link adds a key; false when all its buckets are full. The caller holds the stripe of h.
func (t *Table) link(h uint64, k uint32) bool {
	home := t.home(h)
	n := home
	for d := range uint64(maxProbe) {
		b := &t.index[n]
		for j := range b.keys {
			if b.keys[j].Load() != 0 {
				continue
			}
			// Counted before it is there: a reader that finds no count looks no further than its home.
			t.index[home].overflow(1, d)
			if b.keys[j].CompareAndSwap(0, k) {
				b.tags[j>>3].Or(tag(h) << (j & 7 * 8))
				return true
			}
			t.index[home].overflow(-1, d)
		}
		n = t.after(n)
	}
	return false
}

// unlink removes the key of slot i and direction d, if it is there. The caller holds the stripe of h.
func (t *Table) unlink(h uint64, i uint32, d Dir) {
	home := t.home(h)
	n := home
	for far := range uint64(maxProbe) {
		b := &t.index[n]
		for j := range b.keys {
			if k := b.keys[j].Load(); k != 0 && keySlot(k) == i && keyDir(k) == d {
				b.tags[j>>3].And(^(uint64(0xff) << (j & 7 * 8)))
				b.keys[j].Store(0)
				t.index[home].overflow(-1, far)
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
		old := b.tags[1].Load()
		count, farthest := old>>countShift+uint64(change), max(old>>farShift&0xff, d)
		if count == 0 {
			farthest = 0
		}
		if b.tags[1].CompareAndSwap(old, count<<countShift|farthest<<farShift|old&(1<<farShift-1)) {
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
