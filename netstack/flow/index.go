package flow

import (
	"math/bits"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	bucketKeys = 15
	maxProbe   = 16 // buckets that a key may be in, its home first
	stripes    = 256
)

// bucket is one cache line of the index: sixteen halves, two to a word so that both are exchanged at once. Half 0 counts
// the keys that have their home here and live in a later bucket (<< 16), and says how many buckets later at most (<< 8).
// The others are keys, slot << 8 | direction << 7 | tag, or 0. A tag is never 0, as half 0's is.
type bucket [(1 + bucketKeys) / 2]atomic.Uint64

const (
	tagBits   = 0x7f
	tagOfEach = tagBits<<32 | tagBits // the tags of both halves of a word

	eachByte = 0x0101010101010101
	highBits = eachByte << 7
)

// indexLen is the number of buckets for capacity flows: 10 of their 15 keys are taken when the table is full.
func indexLen(capacity int) int { return max((capacity+4)/5, maxProbe) }

// key is what the index knows of a tuple. The bucket is found by the high bits of the hash, so the tag is of low ones.
func key(h uint64, i uint32, d Dir) uint32 { return i<<8 | uint32(d)<<7 | tag(h) }

func tag(h uint64) uint32 { return max(uint32(h)&tagBits, 1) }

func keySlot(k uint32) uint32 { return k >> 8 }

func keyDir(k uint32) Dir { return Dir(k >> 7 & 1) }

// half gives half j, and put exchanges it for k if it is still old.
func (b *bucket) half(j int) uint32 { return uint32(b[j>>1].Load() >> (j & 1 << 5)) }

func (b *bucket) put(j int, old, k uint32) bool {
	word, shift := &b[j>>1], j&1<<5
	for {
		w := word.Load()
		if uint32(w>>shift) != old {
			return false
		}
		if word.CompareAndSwap(w, w&^(0xffffffff<<shift)|uint64(k)<<shift) {
			return true
		}
	}
}

// candidates marks the halves whose tag is the one that is in every byte of tags. It looks at all of them without a
// branch: where in its bucket a key is cannot be foretold, and a branch on it would be guessed wrong, which costs more
// than the whole comparison, and keeps the processor from beginning with the next packet meanwhile.
func (b *bucket) candidates(tags uint64) candidates {
	lo := bytesOf(b[0].Load(), b[1].Load(), b[2].Load(), b[3].Load()) ^ tags
	hi := bytesOf(b[4].Load(), b[5].Load(), b[6].Load(), b[7].Load()) ^ tags
	// The high bit of a byte becomes set by the sum unless all others are 0.
	return candidates(^(lo+(highBits-eachByte))&highBits>>1 | ^(hi+(highBits-eachByte))&highBits)
}

// bytesOf collects the tags of four words in the bytes of one, that of half h of word w in byte 4*h + w.
func bytesOf(a, b, c, d uint64) uint64 {
	return a&tagOfEach | b&tagOfEach<<8 | c&tagOfEach<<16 | d&tagOfEach<<24
}

// candidates has bit 6 of byte 4*half + word set for words 0 to 3 of a bucket, bit 7 for words 4 to 7.
type candidates uint64

// first gives the number of a half that is marked.
func (c candidates) first() int {
	n := bits.TrailingZeros64(uint64(c))
	return n&1<<3 | n>>3&3<<1 | n>>5
}

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
	tags, n := uint64(tag(h))*eachByte, t.home(h)
	for d, last := uint32(0), uint32(0); ; d++ {
		b := &t.index[n]
		for c := b.candidates(tags); c != 0; c = c.rest() {
			k := b.half(c.first())
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
func (b *bucket) farthest() uint32 { return b.half(0) >> 8 & 0xff }

// link adds a key; false when all its buckets are full. The caller holds the stripe of h.
func (t *Table) link(h uint64, k uint32) bool {
	home := t.home(h)
	n := home
	for d := range uint32(maxProbe) {
		b := &t.index[n]
		for j := 1; j <= bucketKeys; j++ {
			if b.half(j) != 0 {
				continue
			}
			// Counted before it is there: a reader that finds no count looks no further than its home.
			t.index[home].overflow(1, d)
			if b.put(j, 0, k) {
				return true
			}
			t.index[home].overflow(-1, d)
		}
		n = t.after(n)
	}
	return false
}

// unlink removes a key, if it is there. The caller holds the stripe of h.
func (t *Table) unlink(h uint64, k uint32) {
	home := t.home(h)
	n := home
	for d := range uint32(maxProbe) {
		b := &t.index[n]
		for j := 1; j <= bucketKeys; j++ {
			if b.half(j) == k {
				b.put(j, k, 0)
				t.index[home].overflow(-1, d)
				return
			}
		}
		n = t.after(n)
	}
}

// overflow counts a key, or one less, that lives d buckets after its home b.
func (b *bucket) overflow(change int32, d uint32) {
	if d == 0 {
		return
	}
	for {
		old := b.half(0)
		count, farthest := old>>16+uint32(change), max(old>>8&0xff, d)
		if count == 0 {
			farthest = 0
		}
		if b.put(0, old, count<<16|farthest<<8) {
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
