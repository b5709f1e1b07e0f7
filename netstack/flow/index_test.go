package flow

import (
	"math/rand/v2"
	"testing"
)

// TestCandidates compares the search of a bucket for a tag with a search that looks at each key.
func TestCandidates(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		var b bucket
		var tags [bucketKeys]uint64
		for j := range tags {
			if tags[j] = r.Uint64N(6); tags[j] == 5 { // few values, so often equal or adjacent; 0 is no tag
				tags[j] = 0xff
			}
			b.tags[j>>3].Or(tags[j] << (j & 7 * 8))
		}
		b.tags[1].Or(r.Uint64() << 32) // the count
		want := [...]uint64{1, 2, 4, 0xff}[r.IntN(4)]
		seen, vain, found := [bucketKeys]bool{}, false, false
		for c := b.candidates(want * eachByte); c != 0; c = c.rest() {
			j := c.first()
			if seen[j] {
				t.Fatalf("tags %v: key %d is a candidate twice", tags, j)
			}
			seen[j] = true
			found, vain = found || tags[j] == want, vain || tags[j] != want
		}
		for j := range tags {
			if tags[j] == want && !seen[j] {
				t.Fatalf("tags %v: key %d is no candidate for %d", tags, j, want)
			}
		}
		if vain && !found {
			t.Fatalf("tags %v: there are candidates for %d, all in vain", tags, want)
		}
	}
}

// TestKey: slot and direction can be read from a key, whatever the hash; a key is never 0, which means none.
func TestKey(t *testing.T) {
	for _, h := range []uint64{0, 1, 0xff, 0x3f00, ^uint64(0), 0x123456789abcdef} {
		for _, i := range []uint32{0, 1, maxSlots - 1} {
			for _, d := range []Dir{Original, Reply} {
				k := key(h, i, d)
				if k == 0 || keySlot(k) != i || keyDir(k) != d || !keyFits(k, h) || keyFits(k, h^1<<9) || keyFits(0, h) {
					t.Errorf("key(%#x, %d, %d) = %#x", h, i, d, k)
				}
			}
		}
		if tag(h) == 0 || tag(h) > 0xff {
			t.Errorf("tag(%#x) = %#x", h, tag(h))
		}
	}
}
