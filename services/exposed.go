package services

import (
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
)

// Exposed reports whether an address is one of Services' ExternalIPs, and of nothing else. A node's address is not: the
// host has it, and answers there itself.
func (t *Table) Exposed(a packet.Addr) bool { return t.addrs[a]&(exposed|node|dnsAddr) == exposed }

// expose notes an ExternalIP. One in a pod or service range stays what it is to clients outside: nothing.
func (t *Table) expose(a netip.Addr) {
	if !addressing.Contains(t.config.ClusterCIDRs, a) && !addressing.Contains(t.config.ServiceCIDRs, a) {
		t.addr(a, exposed)
	}
}

// ExposedAddrs returns the addresses that are Exposed, each once, sorted.
func (t *Table) ExposedAddrs() []netip.Addr {
	var list []netip.Addr
	for a := range t.addrs {
		if t.Exposed(a) {
			list = append(list, a.Netip())
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}
