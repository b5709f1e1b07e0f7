package services

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"tapestry.dev/tapestry/netstack/packet"
)

// ServicePort names a port of a Service that is reached over TCP, as whoever makes connections of his own refers to
// it: by the port's name or by its number in decimal, which no name looks like (RFC 6335, section 5.1).
type ServicePort struct {
	Namespace, Name string
	Port            string
}

// Endpoints returns the addresses at which a Service port is served, sorted: those that a ClusterIP of either family
// leads to under the Cluster policy, by Select, whether or not the Service has one. None when there is no such port.
// It is the very same list until the Service changes, is borrowed, and costs a search by name when it has been asked
// for before.
func (t *Table) Endpoints(p ServicePort) []netip.AddrPort {
	i, s := t.service(p.Namespace, p.Name)
	if s == nil {
		return nil
	}
	j := s.portOf(p.Port)
	if j < 0 {
		return nil
	}
	if list, known := t.units[i].reach.Load(j); known {
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
	first, _ := t.units[i].reach.LoadOrStore(j, list)
	return first.([]netip.AddrPort)
}

// Serves reports whether a is the address of an endpoint of the Service that is ready.
func (t *Table) Serves(namespace, name string, a netip.Addr) bool {
	_, s := t.service(namespace, name)
	return s != nil && slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Addr == a && (e.Ready || s.PublishNotReady) })
}

// service finds a Service and its index; nil when there is none.
func (t *Table) service(namespace, name string) (int, *Service) {
	want := &Service{Namespace: namespace, Name: name}
	i, found := slices.BinarySearchFunc(t.config.Services, want, compareServices)
	if !found {
		return -1, nil
	}
	return i, t.config.Services[i]
}

// portOf returns the index of the TCP port with that name or number, -1 when there is none.
func (s *Service) portOf(port string) int {
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		return slices.IndexFunc(s.Ports, func(p Port) bool { return uint64(p.Port) == n && p.Protocol == packet.TCP })
	}
	return slices.IndexFunc(s.Ports, func(p Port) bool { return p.Name == port && port != "" && p.Protocol == packet.TCP })
}
