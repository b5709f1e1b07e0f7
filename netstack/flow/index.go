package flow

import (
	"math/bits"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	bucketKeys = 12
	maxProbe   = 16 // number of buckets in which a key may be, its home first
	stripes    = 256
)

// bucket is one cache line of the index. Byte j of tags is the tag of key j, or 0 when there is no key. The last four
// bytes of tags are no tags: bits 48 to 63 of tags[1] count the keys whose home is this bucket but which are in a later
// one, and bits 40 to 47 say how many buckets later at most. A key is slot << 8 | direction << 7 | six more bits of the
// hash << 1 | 1, and 0 when there is none. A key is stored before its tag and removed after it.
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

// indexLen returns the number of buckets for capacity flows. When the table is full, 8 of the 12 keys of a bucket are
// taken on average.
func indexLen(capacity int) int { return max((capacity+3)/4, maxProbe) }

// tag takes low bits of the hash, since the high bits choose the bucket.
func tag(h uint64) uint64 { return max(h&0xff, 1) }

// key returns what the index stores of a tuple with the hash h.
func key(h uint64, i uint32, d Dir) uint32 { return i<<slotShift | uint32(d)<<dirShift | more(h) }

// more returns the bits of the hash that a key holds besides the tag.
func more(h uint64) uint32 { return uint32(h>>8)&moreTag | taken }

func keySlot(k uint32) uint32 { return k >> slotShift }

func keyDir(k uint32) Dir { return Dir(k >> dirShift & 1) }

// keyFits reports whether a key that was found by its tag may be that of hash h.
func keyFits(k uint32, h uint64) bool { return (k^more(h))&(moreTag|taken) == 0 }

// candidates marks the keys whose tag equals the byte that fills tags, and rarely one more. It looks at all keys
// without a branch. Where a key is in its bucket cannot be predicted; a mispredicted branch costs more than the whole
// comparison, and keeps the processor from beginning the next packet meanwhile.
func (b *bucket) candidates(tags uint64) candidates {
	lo, hi := b.tags[0].Load()^tags, b.tags[1].Load()^tags
	// A byte of 0 borrows, which sets its high bit. A byte of 1 after it may then be taken for 0.
	return candidates((lo-eachByte)&^lo&highBits>>7 | (hi-eachByte)&^hi&(highBits&0xffffffff)>>3)
}

// candidates is a set of keys: bit 8*j for key j up to 7, and bit 8*(j-8) + 4 for a later key.
type candidates uint64

// first returns the number of the first key in the set. The product shifts a hexadecimal digit of the constant into the
// high bits: for j up to 7 the digit j is 8*j bits below the highest one, and the digit j+8 is 4 bits below the digit
// j.
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

// place says where a key was found: the slot, the slot's sequence number at that time, and the key's direction.
type place struct {
	slot, seq uint32
	dir       Dir
}

// find looks a tuple up for a writer, whether expired or not. It takes no lock itself; the answer stays true as long as
// the caller holds the stripe of h. It searches in the same way as get, which readers use.
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

// farthest returns how many buckets after b keys with the home b are at most.
func (b *bucket) farthest() uint32 { return uint32(b.tags[1].Load()>>farShift) & 0xff }

// link adds a key. It returns false when all buckets of the key are full. The caller holds the stripe of h.
func (t *Table) link(h uint64, k uint32) bool {
	home := t.home(h)
	n := home
	for d := range uint64(maxProbe) {
		b := &t.index[n]
		for j := range b.keys {
			if b.keys[j].Load() != 0 {
				continue
			}
			// The count comes before the key, since a reader that finds no count looks no further than the home bucket.
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

// unlink removes the key of slot i and direction d, if there is one. The caller holds the stripe of h.
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

// overflow adds change to the number of keys that are d buckets after their home b.
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

// lock locks the stripes of two hashes.
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
