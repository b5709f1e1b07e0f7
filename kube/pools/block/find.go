package block

import (
	"net/netip"
	"slices"
	"strings"

	"tapestry.dev/tapestry/kube/v1alpha1"
)

// Finder returns a function that returns the name of the pool with an address, "" for none. Pools of nodes are left
// out: their addresses are the nodes' own. Where pools overlap, which is a fault of theirs, the first by name has it.
func Finder(list []*v1alpha1.AddressPool) func(netip.Addr) string {
	type named struct {
		Block
		pool string
	}
	var all []named
	for _, p := range list {
		for _, text := range p.Spec.Addresses {
			if b, err := Parse(text); err == nil && p.Spec.Nodes == nil {
				all = append(all, named{b, p.Name})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b named) int { return strings.Compare(a.pool, b.pool) })
	return func(a netip.Addr) string {
		for i := range all {
			if all[i].Contains(a) {
				return all[i].pool
			}
		}
		return ""
	}
}
