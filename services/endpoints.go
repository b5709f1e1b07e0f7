package services

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"tapestry.dev/tapestry/netstack/packet"
)

// ServicePort names a TCP port of a Service for callers that make connections themselves. Port is the port's name, or
// its number in decimal. No name consists of digits alone (RFC 6335, section 5.1).
type ServicePort struct {
	Namespace, Name string
	Port            string
}

// Endpoints returns the addresses at which a Service port is served, sorted. They are the endpoints that Select
// returns for both families under the Cluster policy, whether or not the Service has a ClusterIP. The list is empty
// when there is no such port. Until the Service changes, each call returns the same slice, which the caller must not
// change. After the first call the cost is one search by name.
func (t *Table) Endpoints(p ServicePort) []netip.AddrPort {
	i, s := t.service(p.Namespace, p.Name)
	if s == nil {
		return nil
	}
	j := s.portOf(p.Port)
	if j < 0 {
		return nil
	}
	if list, known := t.units.At(i).reach.Load(j); known {
		return list.([]netip.AddrPort)
	}
	var list []netip.AddrPort
	for _, target := range Select(s, &s.Ports[j], Scope{}) {
		list = append(list, netip.AddrPortFrom(target.Endpoint.Addr.Unmap(), target.Port))
	}
	slices.SortFunc(list, func(a, b netip.AddrPort) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
	})
	list = slices.Clip(slices.Compact(list))
	first, _ := t.units.At(i).reach.LoadOrStore(j, list)
	return first.([]netip.AddrPort)
}

// Serves reports whether a is the address of a ready endpoint of the Service. After the first call the cost is one
// search by name.
func (t *Table) Serves(namespace, name string, a netip.Addr) bool {
	i, _ := t.service(namespace, name)
	return i >= 0 && t.units.At(i).ready()[a.Unmap()]
}

// readyAddrs returns the addresses of the ready endpoints of s.
func readyAddrs(s *Service) map[netip.Addr]bool {
	ready := make(map[netip.Addr]bool, s.Len())
	for e := range s.All() {
		if e.Ready || s.PublishNotReady {
			ready[e.Addr.Unmap()] = true
		}
	}
	return ready
}

// service returns a Service and its index, or -1 and nil when there is none.
func (t *Table) service(namespace, name string) (int, *Service) {
	i, found := t.config.Services.Search(func(s *Service) int {
		return cmp.Or(cmp.Compare(s.Namespace, namespace), cmp.Compare(s.Name, name))
	})
	if !found {
		return -1, nil
	}
	return i, t.config.Services.At(i)
}

// portOf returns the index of the TCP port with that name or number, or -1 when there is none.
func (s *Service) portOf(port string) int {
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		return slices.IndexFunc(s.Ports, func(p Port) bool { return uint64(p.Port) == n && p.Protocol == packet.TCP })
	}
	return slices.IndexFunc(s.Ports, func(p Port) bool { return p.Name == port && port != "" && p.Protocol == packet.TCP })
}
