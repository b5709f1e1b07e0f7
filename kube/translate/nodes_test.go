package translate

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestRangesTwin compares overlapping with a linear search.
func TestRangesTwin(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	prefix := func() netip.Prefix {
		if random.IntN(4) == 0 {
			return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(random.IntN(64))}), 120+random.IntN(9)).Masked()
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(256))}), 22+random.IntN(11)).Masked()
	}
	overlaps := 0
	for range 300 {
		var r ranges
		for range 20 {
			p := prefix()
			var owner string
			var other netip.Prefix
			for _, x := range r {
				if x.Overlaps(p) && (owner == "" || x.owner < owner) {
					owner, other = x.owner, x.Prefix
				}
			}
			gotOwner, gotOther := r.overlapping(p)
			if gotOwner != owner || gotOther != other {
				t.Fatalf("%v among %v: got %v of %q, want %v of %q", p, r, gotOther, gotOwner, other, owner)
			}
			if owner == "" {
				r.add(p, string(rune('a'+random.IntN(26))))
			} else {
				overlaps++
			}
		}
	}
	if overlaps < 1000 {
		t.Errorf("only %d overlaps", overlaps)
	}
}
