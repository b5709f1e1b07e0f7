package addressing

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestOutermost compares Outermost with the obvious way: a range is left out when another one contains it.
func TestOutermost(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	nested := 0
	for range 3000 {
		var list []netip.Prefix
		for range random.IntN(8) {
			a, bits := netip.AddrFrom4([4]byte{10, byte(random.IntN(2)), byte(random.IntN(3)), byte(random.IntN(256))}), []int{0, 8, 16, 23, 24, 32}[random.IntN(6)]
			if random.IntN(4) == 0 {
				a, bits = netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(random.IntN(3))}), []int{0, 8, 48, 64}[random.IntN(4)]
			}
			list = append(list, netip.PrefixFrom(a, bits))
		}
		var want []netip.Prefix
		for _, p := range list {
			inOther := slices.ContainsFunc(list, func(q netip.Prefix) bool {
				return q.Masked() != p.Masked() && q.Bits() < p.Bits() && q.Contains(p.Addr())
			})
			if p = p.Masked(); !inOther && !slices.Contains(want, p) {
				want = append(want, p)
			}
			if inOther {
				nested++
			}
		}
		slices.SortFunc(want, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
		if got := Outermost(list); !slices.Equal(got, want) {
			t.Fatalf("of %v: %v, want %v", list, got, want)
		}
	}
	if nested < 1000 {
		t.Errorf("only %d ranges lay in others", nested)
	}
}
