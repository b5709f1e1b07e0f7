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

// Exposed is a Service, "namespace/name", with its addresses that are Exposed.
type Exposed struct {
	Service string
	Addrs   []netip.Addr
}

// ExposedServices returns the Services that have exposed addresses, by namespace and name.
func (t *Table) ExposedServices() []Exposed {
	var list []Exposed
	for _, s := range t.config.Services.All() {
		if len(s.ExternalIPs) == 0 {
			continue
		}
		addrs := slices.DeleteFunc(slices.Clone(s.ExternalIPs), func(a netip.Addr) bool { return !t.Exposed(packet.AddrFrom(a)) })
		if len(addrs) > 0 {
			list = append(list, Exposed{s.Namespace + "/" + s.Name, addrs})
		}
	}
	return list
}
