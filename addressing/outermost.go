package addressing

import (
	"cmp"
	"net/netip"
	"slices"
)

// Outermost returns the ranges that lie in no other of the list, masked, sorted by where they begin. Together they hold
// the same addresses as the list, and no two of them overlap.
func Outermost(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	sorted := make([]netip.Prefix, 0, len(list))
	for _, p := range list {
		sorted = append(sorted, p.Masked())
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range sorted {
		// Ranges nest or are apart, and the widest of those that begin at one address comes first.
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}
