package services

import (
	"cmp"
	"net/netip"
	"slices"

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

	pod uint64 // the endpoint's podID; only in Targets of a serving that is sorted
}

// Select returns the endpoints of s to which new flows to its port p may go, in their order.
//
//   - An endpoint serves p when it has a port of the same name and protocol, and an address of the scope's family.
//   - Ready endpoints are used. With PublishNotReady all endpoints count as ready.
//   - If the scope is the whole cluster, every ready endpoint has a node hint and one or more are meant for this node,
//     only those are used. Otherwise the same rule applies to zone hints (Service.spec.trafficDistribution makes
//     the hints).
//   - If the scope has no ready endpoint, endpoints that are terminating but still serving are used (KEP-1669). This is
//     decided within the scope: a node may use its terminating endpoint although other nodes have ready ones.
func Select(s *Service, p *Port, scope Scope) []Target {
	return choose(newServing(s.listed()).port(p), s.PublishNotReady, scope)
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

// serving finds the endpoints of a Service that serve each of its ports. Endpoints share their lists of ports, and each
// list is searched once per port.
type serving struct {
	endpoints []Endpoint
	lists     [][]EndpointPort      // each once
	listOf    []int32               // by endpoint, an index into lists, or -1 when it has no ports
	indexes   []map[portName]uint16 // by list; nil for those that are not longer than searchMax
	numbers   []uint16              // by list, the number of the port that was asked for last; 0: none
	pods      []uint64              // by endpoint; nil when the endpoints are not sorted by it
	order     []int32               // the endpoints, sorted by podID; nil for the order in which they stand
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

func newServing(endpoints []Endpoint) *serving {
	s := &serving{endpoints: endpoints, listOf: make([]int32, len(endpoints)), found: make([]Target, 0, len(endpoints))}
	known := map[portList]int32{}
	for i := range endpoints {
		list := endpoints[i].Ports
		if len(list) == 0 {
			s.listOf[i] = -1
			continue
		}
		id := portList{&list[0], len(list)}
		n, seen := known[id]
		if !seen {
			n = int32(len(s.lists))
			known[id] = n
			s.lists = append(s.lists, list)
			s.indexes = append(s.indexes, indexOf(list))
		}
		s.listOf[i] = n
	}
	s.numbers = make([]uint16, len(s.lists))
	return s
}

// indexOf returns the numbers of a list's ports by their names, or nil when the list is short.
func indexOf(list []EndpointPort) map[portName]uint16 {
	if len(list) <= searchMax {
		return nil
	}
	index := make(map[portName]uint16, len(list))
	for i := range list {
		k := portName{list[i].Name, list[i].Protocol}
		if _, twice := index[k]; !twice && list[i].Port != 0 {
			index[k] = list[i].Port
		}
	}
	return index
}

// sorted makes port return endpoints in the order of their podIDs, so that the backends of no port need sorting.
func (s *serving) sorted() *serving {
	s.pods, s.order = make([]uint64, len(s.endpoints)), make([]int32, len(s.endpoints))
	for i := range s.endpoints {
		s.pods[i], s.order[i] = podID(s.endpoints[i].ID, s.endpoints[i].Addr), int32(i)
	}
	slices.SortStableFunc(s.order, func(x, y int32) int { return cmp.Compare(s.pods[x], s.pods[y]) })
	return s
}

// port returns the endpoints that serve p, in any state. The list is valid until the next call.
func (s *serving) port(p *Port) []Target {
	want := portName{p.Name, p.Protocol}
	for i := range s.lists {
		s.numbers[i] = s.number(i, want)
	}
	s.found = s.found[:0]
	for n := range s.endpoints {
		i, pod := n, uint64(0)
		if s.order != nil {
			i = int(s.order[n])
			pod = s.pods[i]
		}
		if l := s.listOf[i]; l >= 0 && s.numbers[l] != 0 {
			s.found = append(s.found, Target{&s.endpoints[i], s.numbers[l], pod})
		}
	}
	return s.found
}

// number returns the number of the wanted port in a list, or 0.
func (s *serving) number(list int, want portName) uint16 {
	if index := s.indexes[list]; index != nil {
		return index[want]
	}
	for _, p := range s.lists[list] {
		if p.Name == want.name && p.Protocol == want.proto && p.Port != 0 {
			return p.Port
		}
	}
	return 0
}
