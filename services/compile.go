package services

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/leaving"
)

// Problem is a mistake in a Config because of which a part of the Config has no effect.
type Problem struct {
	Object  string // "Service namespace/name"
	Message string // one sentence: what is wrong, and what to do
}

func (p Problem) String() string { return p.Object + ": " + p.Message }

func problemOf(s *Service, format string, args ...any) Problem {
	return Problem{Object: "Service " + s.Namespace + "/" + s.Name, Message: fmt.Sprintf(format, args...)}
}

// unit is one Service, compiled without regard to other Services. It never changes, except for reach and ready, which
// are filled on demand.
type unit struct {
	piece
	fronts []front // the frontends that the Service asks for; service is not filled in
	// sets has four sets per port: the whole cluster's and this node's, each for IPv4 and IPv6. See setIndex.
	sets     []set
	problems []Problem
	held     []uint64 // the backends whose Loads the unit holds, until it is dropped
	reach    sync.Map // results of Endpoints: []netip.AddrPort, by port index
	ready    func() map[netip.Addr]bool
	parts    []*part  // those of the Service, compiled
	whole    []united // of parts, two per port: the whole cluster's, for IPv4 and IPv6
}

// piece is what the states of backends, and other things that Tables count, have of a unit, or of a part of one.
type piece struct {
	states   []state
	standing []leaving.Endpoint // those on this node that clients on other nodes may be sent to
	here     []frontKey         // where endpoints on this node serve
	anywhere []frontKey         // where endpoints without a known node serve
	affinity bool               // the Service has session affinity
}

// state is the state of a backend as one port of the Service sees it. A unit may list one backend several times.
type state struct {
	id uint64
	is packet.BackendState
	// sticky is set when clients may have sessions with it: the Service has session affinity, and it may be chosen.
	sticky bool
}

// add records the state of a backend.
func (p *piece) add(id uint64, is packet.BackendState) {
	p.states = append(p.states, state{id, is, p.affinity && is >= packet.BackendServing})
}

// stateOf returns the state of an endpoint of s. It is the same for all clients: an endpoint is ready even if it gets
// no new flows, for example because its hints are for others.
func stateOf(s *Service, e *Endpoint) packet.BackendState {
	switch {
	case e.Ready || s.PublishNotReady:
		return packet.BackendReady
	case e.Serving && e.Terminating:
		return packet.BackendServing
	}
	return packet.BackendDraining
}

const setsPerPort = 4

func setIndex(port int, local, is4 bool) uint32 {
	i := uint32(port) * setsPerPort
	if local {
		i += 2
	}
	if !is4 {
		i++
	}
	return i
}

// place is what a unit depends on besides its Service: the Table's node, and the families of the node addresses.
type place struct {
	node         string
	node4, node6 bool
}

func placeOf(c *Config) place {
	return place{
		node:  c.Node,
		node4: slices.ContainsFunc(c.NodeAddrs, IPv4.has),
		node6: slices.ContainsFunc(c.NodeAddrs, IPv6.has),
	}
}

func (p place) hasNodes(is4 bool) bool { return is4 && p.node4 || !is4 && p.node6 }

// unitBuilder compiles one unit.
type unitBuilder struct {
	*unit
	place   place
	s       *Service
	serving *serving
	first   map[portKey]int   // index of the first port with that number and protocol
	shared  map[uint64][]*set // large sets by the hash of their pods: those with equal pods share their Maglev table
	loads   *balance.Loads
}

// portKey is a port's number and protocol.
type portKey struct {
	port  uint16
	proto packet.Proto
}

// newUnit compiles s. was is the unit of the same Service before, of which parts are taken over, or nil.
func newUnit(s *Service, p place, loads *balance.Loads, was *unit) *unit {
	b := unitBuilder{unit: &unit{piece: piece{affinity: s.Affinity > 0}}, place: p, s: s, loads: loads}
	b.sets = make([]set, setsPerPort*len(s.Ports))
	if len(s.Ports) == 0 && len(s.ClusterIPs) > 0 {
		b.problem("has a ClusterIP but no ports, so every connection to it is refused; give it at least one port")
	}
	b.ready = sync.OnceValue(func() map[netip.Addr]bool { return readyAddrs(s) })
	if len(s.Parts) > 0 && methodOf(s).Stateless() {
		b.unite(was)
		return b.unit
	}
	endpoints := s.listed()
	b.serving = newServing(endpoints).sorted()
	b.places(endpoints, &b.piece)
	for j := range s.Ports {
		if !b.usable(j) {
			continue
		}
		serving := b.serving.port(&s.Ports[j])
		b.served(j, len(serving) > 0)
		b.stand(&s.Ports[j], serving, &b.piece)
		for _, is4 := range [...]bool{true, false} {
			if b.fronted(&s.Ports[j], is4) {
				b.portSets(j, is4, serving)
				b.portFronts(j, is4)
			}
		}
	}
	b.hold()
	return b.unit
}

// served records a problem when no endpoint serves port j.
func (b *unitBuilder) served(j int, is bool) {
	if !is && b.s.Len() > 0 && !headless(b.s) {
		p := &b.s.Ports[j]
		b.problem("no endpoint serves port %d/%s (%q): check that targetPort is a port number or the name of a container port",
			p.Port, protoName(p.Protocol), p.Name)
	}
}

// places fills in where endpoints serve that are on this node or on none.
func (b *unitBuilder) places(endpoints []Endpoint, to *piece) {
	to.anywhere = endpointsAt(endpoints, "")
	if b.place.node != "" {
		to.here = endpointsAt(endpoints, b.place.node)
	}
}

// endpointsAt returns the addresses and ports of the endpoints on a node, or of those without a known node for "".
func endpointsAt(endpoints []Endpoint, node string) (list []frontKey) {
	for i := range endpoints {
		e := &endpoints[i]
		if e.Node != node {
			continue
		}
		for _, p := range e.Ports {
			list = append(list, addrKey(packet.AddrFrom(e.Addr), p.Port, p.Protocol))
		}
	}
	return list
}

func (b *unitBuilder) problem(format string, args ...any) {
	b.problems = append(b.problems, problemOf(b.s, format, args...))
}

// usable reports whether port j can be served at all. If not, it records a problem.
func (b *unitBuilder) usable(j int) bool {
	s, p := b.s, &b.s.Ports[j]
	if p.Port == 0 {
		b.problem("port %q is 0, which no client can connect to; use 1 to 65535", p.Name)
		return false
	}
	if protoName(p.Protocol) == "" {
		b.problem("port %d has IP protocol %d; only TCP, UDP and SCTP are translated", p.Port, p.Protocol)
		return false
	}
	if len(s.Ports) == 1 {
		return true
	}
	if b.first == nil {
		b.first = make(map[portKey]int, len(s.Ports))
	}
	k := portKey{p.Port, p.Protocol}
	if first, taken := b.first[k]; taken {
		b.problem("port %d/%s stands there twice, as %q and %q; the first is used", p.Port, protoName(p.Protocol), s.Ports[first].Name, p.Name)
		return false
	}
	b.first[k] = j
	return true
}

// headless reports whether s has no address of its own, so that clients find it only through DNS.
func headless(s *Service) bool { return len(s.ClusterIPs) == 0 && len(s.ExternalIPs) == 0 }

// fronted reports whether p has a frontend in the family.
func (b *unitBuilder) fronted(p *Port, is4 bool) bool {
	of := familyOf(is4).has
	return slices.ContainsFunc(b.s.ClusterIPs, of) || slices.ContainsFunc(b.s.ExternalIPs, of) || slices.ContainsFunc(b.s.SocketIPs, of) || b.nodePorted(p, is4)
}

// nodePorted reports whether p is answered at node addresses of the family. A NodePort has the families of its
// Service's ClusterIPs (Service.spec.ipFamilies), or both families if the Service has no ClusterIP.
func (b *unitBuilder) nodePorted(p *Port, is4 bool) bool {
	ips := b.s.ClusterIPs
	return p.NodePort != 0 && b.place.hasNodes(is4) && (len(ips) == 0 || slices.ContainsFunc(ips, familyOf(is4).has))
}

// portFronts adds the frontends of one Service port in one family.
func (b *unitBuilder) portFronts(j int, is4 bool) {
	s, p := b.s, &b.s.Ports[j]
	whole := setIndex(j, false, is4)
	internal, external := setIndex(j, s.InternalLocal, is4), setIndex(j, s.ExternalLocal, is4)
	f := front{set: internal, inside: internal, port: uint16(j), affinity: s.Affinity > 0}
	for _, a := range s.ClusterIPs {
		if familyOf(is4).has(a) {
			b.front(f, addrKey(packet.AddrFrom(a), p.Port, p.Protocol))
		}
	}
	f.set, f.inside, f.guarded = external, whole, s.SourceRanges != nil
	for _, a := range s.ExternalIPs {
		if familyOf(is4).has(a) {
			b.front(f, addrKey(packet.AddrFrom(a), p.Port, p.Protocol))
		}
	}
	for _, a := range s.SocketIPs {
		if familyOf(is4).has(a) {
			b.front(f, socketKey(packet.AddrFrom(a), p.Port, p.Protocol))
		}
	}
	f.guarded = false
	if b.nodePorted(p, is4) {
		b.front(f, nodePortKey(is4, p.NodePort, p.Protocol))
	}
}

func (b *unitBuilder) front(f front, k frontKey) {
	f.key = k
	b.fronts = append(b.fronts, f)
}

// portSets fills in the port's sets of backends of the whole cluster and of this node, and records the state of every
// backend.
func (b *unitBuilder) portSets(j int, is4 bool, serving []Target) {
	s := b.s
	id := portID(s, &s.Ports[j])
	for _, t := range serving {
		if e := t.Endpoint; familyOf(is4).has(e.Addr) {
			b.add(backendID(t.pod, id, t.Port), stateOf(s, e))
		}
	}
	whole, local := &b.sets[setIndex(j, false, is4)], &b.sets[setIndex(j, true, is4)]
	*whole = b.set(choose(serving, s.PublishNotReady, Scope{Family: familyOf(is4)}), id, packet.NoEndpoints)
	switch {
	case whole.size() == 0:
		local.empty = packet.NoEndpoints
	case s.InternalLocal || s.ExternalLocal:
		*local = b.set(choose(serving, s.PublishNotReady, Scope{Family: familyOf(is4), Node: b.place.node}), id, packet.DropLocal)
	}
}

// set returns the set of backends that serve targets. The order of targets does not matter. empty is the answer to
// clients if there are no targets.
func (b *unitBuilder) set(targets []Target, port uint64, empty packet.ChoiceKind) set {
	if len(targets) == 0 {
		return set{empty: empty}
	}
	bs, ending := make([]backend, 0, len(targets)), false
	for _, t := range targets {
		pod := t.pod
		if pod == 0 {
			pod = podID(t.Endpoint.ID, t.Endpoint.Addr)
		}
		id := backendID(pod, port, t.Port)
		if stateOf(b.s, t.Endpoint) != packet.BackendReady { // one that terminates, where none is ready
			b.add(id, packet.BackendReady)
			ending = true
		}
		bs = append(bs, backend{id, packet.Endpoint{Addr: packet.AddrFrom(t.Endpoint.Addr), Port: t.Port}})
	}
	byID := func(x, y backend) int { return cmp.Compare(x.id, y.id) }
	if !slices.IsSortedFunc(bs, byID) {
		slices.SortFunc(bs, byID)
	}
	// An endpoint is in two EndpointSlices for a moment while its controller moves it.
	s := b.chosen(slices.CompactFunc(bs, func(x, y backend) bool { return x.id == y.id }))
	s.ending = ending
	return s
}

// chosen returns the set of backends, which are sorted by id, with what it takes to choose one by hash.
func (b *unitBuilder) chosen(bs []backend) set {
	s, m := set{backends: bs}, methodOf(b.s)
	switch {
	case m.Stateless() && len(bs) > maglevMax:
		s.backends, s.tree = nil, newTree(bs)
	case m == balance.Maglev || m == balance.Hash && len(bs) > rendezvousMax:
		s.slots = b.slots(&s)
	}
	return s
}

// slots returns the Maglev table of a set. It depends on the pods alone, so the ports of a Service that the same pods
// serve share one.
func (b *unitBuilder) slots(s *set) []uint32 {
	h := uint64(len(s.backends))
	for i := range s.backends {
		h = mix(h^s.backends[i].id&podMask, mixA)
	}
	for _, other := range b.shared[h] {
		if slices.EqualFunc(s.backends, other.backends, func(x, y backend) bool { return x.id&podMask == y.id&podMask }) {
			return other.slots
		}
	}
	made := &set{backends: s.backends, slots: make([]uint32, maglevSize(len(s.backends)))}
	fillMaglev(made.slots, made.backends)
	if b.shared == nil {
		b.shared = map[uint64][]*set{}
	}
	b.shared[h] = append(b.shared[h], made)
	return made.slots
}

// protoName returns the protocol's name in Kubernetes, or "" for a protocol that Services do not have.
func protoName(p packet.Proto) string {
	switch p {
	case packet.TCP:
		return "TCP"
	case packet.UDP:
		return "UDP"
	case packet.SCTP:
		return "SCTP"
	}
	return ""
}
