// Package addressing is the address plan, which every node of a cluster computes by itself and all nodes compute alike:
// which addresses of a pod range have a meaning, what the tunnel adds to a packet, and by which number a node is known.
// It is a leaf: it imports nothing else of Tapestry, and every package may import it.
//
// In a pod range, the first address after the network's own is the stack's and the second is the host TAP's. Pods have
// the rest, except the broadcast address of IPv4.
package addressing

import (
	"hash/fnv"
	"net/netip"
)

// Stack returns the stack's address in a pod range.
func Stack(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr().Next() }

// Host returns the host TAP's address in a pod range.
func Host(podCIDR netip.Prefix) netip.Addr { return Stack(podCIDR).Next() }

// FirstPod returns the lowest address in a pod range that a pod may have. It lies outside a range that has no room for
// pods.
func FirstPod(podCIDR netip.Prefix) netip.Addr { return Host(podCIDR).Next() }

// Reserved reports whether a, an address of a pod range, cannot be a pod's: the network's own, the stack's, the host
// TAP's, and IPv4's broadcast address.
func Reserved(podCIDR netip.Prefix, a netip.Addr) bool {
	return a.Compare(Host(podCIDR)) <= 0 || a.Is4() && !podCIDR.Contains(a.Next())
}

// maxCapacity is the largest result of Capacity, so that it fits an int everywhere.
const maxCapacity = 1 << 30

// Capacity returns for how many pods a pod range has addresses, at most 1<<30.
func Capacity(podCIDR netip.Prefix) int {
	bits := podCIDR.Addr().BitLen() - podCIDR.Bits()
	if bits > 30 {
		return maxCapacity
	}
	reserved := 3
	if podCIDR.Addr().Is4() {
		reserved = 4
	}
	return max(0, 1<<bits-reserved)
}

// Contains reports whether a lies in one of the ranges.
func Contains(ranges []netip.Prefix, a netip.Addr) bool {
	for i := range ranges {
		if ranges[i].Contains(a) {
			return true
		}
	}
	return false
}

// Node names a node among all clusters that know one another.
type Node struct {
	// Cluster is the name of the node's cluster, "" where there is only one.
	Cluster string
	// Name is the name of the Node object.
	Name string
}

// ID returns the number by which other nodes know this one: FNV-1a of the name, preceded by the cluster's name where
// there is one. It is never 0, and stays the same over restarts and upgrades, since flows refer to it.
func (n Node) ID() uint64 {
	h := fnv.New64a()
	if n.Cluster != "" {
		h.Write([]byte(n.Cluster))
		h.Write([]byte{'/'}) // no name of a cluster has a slash (RFC 1123 label)
	}
	h.Write([]byte(n.Name))
	return max(h.Sum64(), 1)
}
