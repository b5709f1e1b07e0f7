package services

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// Scope says which endpoints of a Service one kind of frontend may use.
type Scope struct {
	// Node keeps only endpoints on that node (traffic policy Local). "" keeps the endpoints of the whole cluster.
	Node string
	// Family is the family of the frontend's address. Addresses are not translated between families.
	Family Family
}

// Family is an address family.
type Family uint8

// The families.
const (
	AnyFamily Family = iota // for callers that make connections themselves
	IPv4
	IPv6
)

func familyOf(is4 bool) Family {
	if is4 {
		return IPv4
	}
	return IPv6
}

// has reports whether a is a usable address of the family.
func (f Family) has(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && (f == AnyFamily || f == familyOf(a.Unmap().Is4()))
}

// Target is an endpoint together with the port on which it serves the Service port asked for.
type Target struct {
	Endpoint *Endpoint // borrowed from the Service
	Port     uint16
}

// Select returns the endpoints of s to which new flows to its port p may go, in the order of s.Endpoints.
//
//   - An endpoint serves p when it has a port of the same name and protocol, and an address of the scope's family.
//   - Ready endpoints are used. With PublishNotReady all endpoints count as ready.
//   - If the scope is the whole cluster, every ready endpoint has a node hint and one or more are meant for this node,
//     only those are used. Otherwise the same rule applies to zone hints (Service.spec.trafficDistribution makes
//     the hints).
//   - If the scope has no ready endpoint, endpoints that are terminating but still serving are used (KEP-1669). This is
//     decided within the scope: a node may use its terminating endpoint although other nodes have ready ones.
func Select(s *Service, p *Port, scope Scope) []Target {
	return choose((&serving{endpoints: s.Endpoints}).port(p), s.PublishNotReady, scope)
}

// choose is Select among the endpoints that serve the port.
func choose(serving []Target, publishNotReady bool, scope Scope) []Target {
	ready := make([]Target, 0, len(serving))
	var fallback []Target
	for _, t := range serving {
		e := t.Endpoint
		switch {
		case scope.Node != "" && e.Node != scope.Node, !scope.Family.has(e.Addr):
		case e.Ready || publishNotReady:
			ready = append(ready, t)
		case e.Serving && e.Terminating:
			fallback = append(fallback, t)
		}
	}
	switch {
	case len(ready) == 0:
		return fallback
	case scope.Node != "":
		return ready
	}
	for _, hint := range [...]func(*Endpoint) Hint{forNode, forZone} {
		if near, ok := hinted(ready, hint); ok {
			return near
		}
	}
	return ready
}

func forNode(e *Endpoint) Hint { return e.ForNode }
func forZone(e *Endpoint) Hint { return e.ForZone }

// hinted returns the targets that are meant for here. ok is false when there is none, or when any target has no hint:
// then the control plane has not yet distributed hints to all, and the others would be overloaded.
func hinted(targets []Target, hint func(*Endpoint) Hint) (near []Target, ok bool) {
	for _, t := range targets {
		switch hint(t.Endpoint) {
		case NoHint:
			return nil, false
		case Here:
			near = append(near, t)
		}
	}
	return near, len(near) > 0
}

// serving finds the endpoints of a Service that serve each of its ports, in time linear in endpoints and ports.
// Endpoints share their lists of ports, and each list is searched once per port.
type serving struct {
	endpoints []Endpoint
	indexes   map[portList]map[portName]uint16 // only of lists longer than searchMax
	found     []Target
}

// portList identifies a list of ports by its memory.
type portList struct {
	first *EndpointPort
	n     int
}

// portName is the name and protocol by which a port of a Service and a port of an endpoint match.
type portName struct {
	name  string
	proto packet.Proto
}

// searchMax is the length up to which a list of ports is searched linearly.
const searchMax = 8

// port returns the endpoints that serve p, in any state, in their order. The list is valid until the next call.
func (s *serving) port(p *Port) []Target {
	if s.found == nil {
		s.found = make([]Target, 0, len(s.endpoints))
	}
	s.found = s.found[:0]
	var last portList
	port, ok := uint16(0), false
	for i := range s.endpoints {
		e := &s.endpoints[i]
		if len(e.Ports) == 0 {
			continue
		}
		if l := (portList{&e.Ports[0], len(e.Ports)}); l != last {
			last = l
			port, ok = s.target(e.Ports, portName{p.Name, p.Protocol})
		}
		if ok {
			s.found = append(s.found, Target{e, port})
		}
	}
	return s.found
}

// target returns the number of the wanted port in a list. The list must not be empty.
func (s *serving) target(list []EndpointPort, want portName) (port uint16, ok bool) {
	if len(list) <= searchMax {
		for i := range list {
			if p := &list[i]; p.Name == want.name && p.Protocol == want.proto && p.Port != 0 {
				return p.Port, true
			}
		}
		return 0, false
	}
	id := portList{&list[0], len(list)}
	index, known := s.indexes[id]
	if !known {
		index = make(map[portName]uint16, len(list))
		for i := range list {
			k := portName{list[i].Name, list[i].Protocol}
			if _, twice := index[k]; !twice && list[i].Port != 0 {
				index[k] = list[i].Port
			}
		}
		if s.indexes == nil {
			s.indexes = map[portList]map[portName]uint16{}
		}
		s.indexes[id] = index
	}
	port, ok = index[want]
	return port, ok
}
