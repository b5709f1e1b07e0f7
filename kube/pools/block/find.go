package block

import (
	"cmp"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/kube/v1alpha1"
)

// Older orders pools by age. Of two that have an address both, the older keeps it.
func Older(a, b *v1alpha1.AddressPool) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// Finder returns a function that returns the name of the pool with an address, "" for none. Pools of nodes are left
// out: their addresses are the nodes' own. Where pools overlap, which is a fault of theirs, the older has it (Older).
func Finder(list []*v1alpha1.AddressPool) func(netip.Addr) string {
	type named struct {
		Block
		pool string
	}
	var all []named
	for _, p := range slices.SortedFunc(slices.Values(list), Older) {
		for _, text := range p.Spec.Addresses {
			if b, err := Parse(text); err == nil && p.Spec.Nodes == nil {
				all = append(all, named{b, p.Name})
			}
		}
	}
	return func(a netip.Addr) string {
		for i := range all {
			if all[i].Contains(a) {
				return all[i].pool
			}
		}
		return ""
	}
}
