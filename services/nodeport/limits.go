package nodeport

import (
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

// Limits has the addresses of the host at which node ports are, by services.Family; a family that it lacks has them at
// all addresses.
type Limits map[services.Family][]netip.Addr

// of returns the sockets that are left of one socket of a node port. One at all addresses becomes one at each of those
// that are named, and one on loopback one at each loopback address among them.
func (l Limits) of(s PortSpec) []PortSpec {
	family := services.IPv6
	if s.Addr.Is4() {
		family = services.IPv4
	}
	list, limited := l[family]
	if !limited || s.Protocol == packet.SCTP { // SCTP has no socket, but a Problem
		return []PortSpec{s}
	}
	if s.Addr.IsLoopback() {
		list = slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return !a.IsLoopback() })
	}
	var specs []PortSpec
	for _, a := range list {
		s.Addr = a
		specs = append(specs, s)
	}
	return specs
}

// Addrs returns the addresses at which something listens that is where node ports are: all that are named, and the
// unspecified address of a family that has no limit. It returns nil for all addresses of the host.
func (l Limits) Addrs() []netip.Addr {
	if len(l) == 0 {
		return nil
	}
	all := []netip.Addr{}
	for family, unspecified := range map[services.Family]netip.Addr{services.IPv4: netip.IPv4Unspecified(), services.IPv6: netip.IPv6Unspecified()} {
		if list, limited := l[family]; limited {
			all = append(all, list...)
		} else {
			all = append(all, unspecified)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}
