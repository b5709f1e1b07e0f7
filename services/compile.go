package services

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
)

// Problem is something odd in a Config that leaves part of it without effect.
type Problem struct {
	Object  string // "Service namespace/name"
	Message string // one sentence: what was expected, and what to do
}

func (p Problem) String() string { return p.Object + ": " + p.Message }

// NewTable compiles c, which is borrowed for the life of the Table and must not be changed. Problems are reported and
// left out; everything else of c takes effect. Where two Services claim one frontend, the lesser namespace/name has it,
// so that all nodes agree.
func NewTable(c Config) (*Table, []Problem) {
	b := newBuilder(c)
	for _, i := range b.order() {
		b.service(uint32(i))
	}
	for i := range c.Pods {
		b.pod(&c.Pods[i])
	}
	b.t.makeIndex()
	t := b.t
	return &t, b.problems
}

// builder is a Table being made.
type builder struct {
	t        Table
	taken    map[frontKey]uint32 // service of every frontend so far
	node4    bool                // there is a node address of the family
	node6    bool
	problems []Problem
}

func newBuilder(c Config) *builder {
	endpoints := 0
	for i := range c.Services {
		endpoints += len(c.Services[i].Endpoints) * len(c.Services[i].Ports)
	}
	n := len(c.Services)
	b := &builder{taken: make(map[frontKey]uint32, n), t: Table{
		config:   c,
		addrs:    make(map[packet.Addr]addrKind, n+len(c.NodeAddrs)+len(c.DNSAddrs)),
		fronts:   make([]front, 0, n),
		sets:     make([]set, 0, n+3),
		backends: make([]backend, 0, endpoints),
		states:   make(map[uint64]packet.BackendState, endpoints),
		pods:     make(map[uint64]struct{}, len(c.Pods)),
	}}
	b.t.sets = append(b.t.sets,
		set{empty: packet.NoEndpoints}, // setNoEndpoints
		set{empty: packet.DropLocal},   // setDropLocal
		set{empty: packet.ToGateway},   // setGateway
	)
	for _, a := range c.NodeAddrs {
		b.addr(a, node)
		b.node4 = b.node4 || ofFamily(a, true)
		b.node6 = b.node6 || ofFamily(a, false)
	}
	for _, a := range c.DNSAddrs {
		b.dns(a)
	}
	for _, a := range c.OwnAddrs {
		if a.IsValid() {
			b.t.own = append(b.t.own, packet.AddrFrom(a))
		}
	}
	return b
}

// order is that in which Services claim frontends.
func (b *builder) order() []int {
	ss := b.t.config.Services
	order := make([]int, len(ss))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int {
		return cmp.Or(cmp.Compare(ss[x].Namespace, ss[y].Namespace), cmp.Compare(ss[x].Name, ss[y].Name))
	})
	return order
}

func (b *builder) problem(s *Service, format string, args ...any) {
	b.problems = append(b.problems, Problem{
		Object:  "Service " + s.Namespace + "/" + s.Name,
		Message: fmt.Sprintf(format, args...),
	})
}

func (b *builder) addr(a netip.Addr, k addrKind) {
	if a.IsValid() && !a.IsUnspecified() {
		b.t.addrs[packet.AddrFrom(a)] |= k
	}
}

// dns adds a cluster DNS address, before any Service: the node's own server goes before what a Service says of it.
func (b *builder) dns(a netip.Addr) {
	if !a.IsValid() {
		return
	}
	b.addr(a, dnsAddr)
	for _, proto := range [...]packet.Proto{packet.UDP, packet.TCP} {
		f := front{set: setGateway, inside: setGateway, service: noService}
		b.front(f, addrKey(packet.AddrFrom(a), 53, proto), a.String())
	}
}

func (b *builder) pod(p *Pod) {
	if p.ID == "" {
		return
	}
	for _, a := range p.Addrs {
		b.t.pods[podID(p.ID, a)] = struct{}{}
	}
}

func (b *builder) service(i uint32) {
	s := &b.t.config.Services[i]
	if len(s.Ports) == 0 && len(s.ClusterIPs) > 0 {
		b.problem(s, "has a ClusterIP but no ports, so every connection to it is refused; give it at least one port")
	}
	for _, a := range s.ClusterIPs {
		b.addr(a, virtual)
	}
	for _, a := range s.ExternalIPs {
		b.addr(a, virtual)
	}
	for j := range s.Ports {
		p := &s.Ports[j]
		if !b.usable(s, j) {
			continue
		}
		for _, is4 := range [...]bool{true, false} {
			if b.fronted(s, p, is4) {
				b.port(i, j, is4)
			}
		}
	}
}

// usable reports whether port j of s can be served at all.
func (b *builder) usable(s *Service, j int) bool {
	p := &s.Ports[j]
	if p.Port == 0 {
		b.problem(s, "port %q is 0, which no client can connect to; use 1 to 65535", p.Name)
		return false
	}
	if protoName(p.Protocol) == "" {
		b.problem(s, "port %d has IP protocol %d; only TCP, UDP and SCTP are translated", p.Port, p.Protocol)
		return false
	}
	for k := range s.Ports[:j] {
		if q := &s.Ports[k]; q.Port == p.Port && q.Protocol == p.Protocol {
			b.problem(s, "port %d/%s stands there twice, as %q and %q; the first is used",
				p.Port, protoName(p.Protocol), q.Name, p.Name)
			return false
		}
	}
	if !headless(s) && len(s.Endpoints) > 0 && !slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool {
		_, ok := targetPort(&e, p)
		return ok
	}) {
		b.problem(s, "no endpoint serves port %d/%s (%q): check that targetPort is a port number or the name of a container port",
			p.Port, protoName(p.Protocol), p.Name)
	}
	return true
}

// headless reports whether only DNS leads to s.
func headless(s *Service) bool { return len(s.ClusterIPs) == 0 && len(s.ExternalIPs) == 0 }

// fronted reports whether p has a frontend of the family.
func (b *builder) fronted(s *Service, p *Port, is4 bool) bool {
	of := func(a netip.Addr) bool { return ofFamily(a, is4) }
	return slices.ContainsFunc(s.ClusterIPs, of) || slices.ContainsFunc(s.ExternalIPs, of) ||
		p.NodePort != 0 && (is4 && b.node4 || !is4 && b.node6)
}

// port adds the frontends of one Service port and family, and its backends.
func (b *builder) port(i uint32, j int, is4 bool) {
	s := &b.t.config.Services[i]
	p := &s.Ports[j]
	whole, local := b.portSets(s, p, is4)
	internal, external := whole, whole
	if s.InternalLocal {
		internal = local
	}
	if s.ExternalLocal {
		external = local
	}
	f := front{set: internal, inside: internal, service: i, port: uint16(j), affinity: s.Affinity > 0}
	for _, a := range s.ClusterIPs {
		if ofFamily(a, is4) {
			b.front(f, addrKey(packet.AddrFrom(a), p.Port, p.Protocol), a.String())
		}
	}
	f.set, f.inside = external, whole
	for _, a := range s.ExternalIPs {
		if ofFamily(a, is4) {
			b.front(f, addrKey(packet.AddrFrom(a), p.Port, p.Protocol), a.String())
		}
	}
	if p.NodePort != 0 && (is4 && b.node4 || !is4 && b.node6) {
		b.front(f, nodePortKey(is4, p.NodePort, p.Protocol), "NodePort")
	}
}

// front adds one frontend, unless an earlier Service has it.
func (b *builder) front(f front, k frontKey, where string) {
	if old, taken := b.taken[k]; taken {
		if old != noService && old != f.service {
			first := &b.t.config.Services[old]
			b.problem(&b.t.config.Services[f.service], "%s %d/%s belongs to Service %s/%s already; give one of them another address or port",
				where, k.port, protoName(k.proto), first.Namespace, first.Name)
		}
		return
	}
	b.taken[k] = f.service
	f.key = k
	b.t.fronts = append(b.t.fronts, f)
}

// portSets gives the sets of backends in the whole cluster and on this node, and records every backend's state.
func (b *builder) portSets(s *Service, p *Port, is4 bool) (whole, local uint32) {
	id := portID(s, p)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		port, ok := targetPort(e, p)
		if !ok || !ofFamily(e.Addr, is4) {
			continue
		}
		if bid := backendID(podID(e.ID, e.Addr), id, port); b.t.states[bid] == packet.BackendGone {
			b.t.states[bid] = packet.BackendDraining
		}
	}
	whole = b.set(Select(s, p, Scope{Is4: is4}), id)
	if !s.InternalLocal && !s.ExternalLocal || whole == setNoEndpoints {
		return whole, whole
	}
	targets := Select(s, p, Scope{Is4: is4, Node: b.t.config.Node})
	if len(targets) == 0 {
		return whole, setDropLocal
	}
	return whole, b.set(targets, id)
}

// set adds a set of backends, whose order does not depend on that of the targets.
func (b *builder) set(targets []Target, port uint64) uint32 {
	if len(targets) == 0 {
		return setNoEndpoints
	}
	first := len(b.t.backends)
	for _, t := range targets {
		id := backendID(podID(t.Endpoint.ID, t.Endpoint.Addr), port, t.Port)
		b.t.states[id] = packet.BackendReady
		b.t.backends = append(b.t.backends, backend{id, packet.Endpoint{Addr: packet.AddrFrom(t.Endpoint.Addr), Port: t.Port}})
	}
	bs := b.t.backends[first:]
	slices.SortFunc(bs, func(x, y backend) int { return cmp.Compare(x.id, y.id) })
	// One endpoint stands in two slices for a moment while its controller moves it.
	bs = slices.CompactFunc(bs, func(x, y backend) bool { return x.id == y.id })
	b.t.backends = b.t.backends[:first+len(bs)]

	s := set{first: uint32(first), n: uint32(len(bs))}
	if len(bs) > rendezvousMax {
		s.slot, s.size = uint32(len(b.t.slots)), maglevSize(len(bs))
		b.t.slots = append(b.t.slots, make([]uint32, s.size)...)
		fillMaglev(b.t.slots[s.slot:], bs)
	}
	b.t.sets = append(b.t.sets, s)
	return uint32(len(b.t.sets) - 1)
}

// protoName is as Kubernetes writes it; "" for a protocol that Services do not have.
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
