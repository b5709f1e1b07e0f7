package services

import (
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/leaving"
)

// Steer chooses another backend for a connection that a client on another node was led to, if the endpoint to which it
// goes, t's destination on this node, gets no new connections any more. Its Kind is NotFrontend if the connection is to
// go where it goes: the endpoint stays, is of no Service, or has no ready one to take its place. A backend on this node
// is preferred, since it sees the client's own address. One without a known node may lie outside of the cluster, where
// nothing is forwarded for other nodes. A client that came wrapped is outside itself: a host would answer it past the
// tunnel, so no host gets it. tuple is borrowed.
func (t *Table) Steer(tuple *packet.Tuple, wrapped bool) packet.Choice {
	from := packet.Endpoint{Addr: tuple.Dst, Port: tuple.DstPort}
	ports := t.Leaving.Leaving(leaving.Key{Endpoint: from, Proto: tuple.Proto})
	if len(ports) == 0 || len(ports) > mostPorts {
		return packet.Choice{}
	}
	var all [mostPorts]portSet
	counted := false
	for i := range ports {
		u, j := t.portAt(&ports[i])
		if u == nil {
			return packet.Choice{} // one of its Services is gone
		}
		all[i] = portSet{&u.sets[setIndex(j, false, tuple.Dst.Is4())], leavingID(&ports[i])}
		if all[i].ending {
			return packet.Choice{}
		}
		counted = counted || i == 0 && u.held != nil
	}
	if b := t.instead(all[:len(ports)], tuple, wrapped); b != nil {
		return packet.Choice{Kind: packet.Picked, Backend: b.id, To: b.to, Counted: counted}
	}
	return packet.Choice{}
}

// portSet is the set of backends of a Service port, and the port's portID.
type portSet struct {
	*set
	port uint64
}

const (
	// mostPorts is how many Service ports one endpoint may serve for connections to it to be steered.
	mostPorts = 8
	// mostTries is how many backends are looked at before a connection is steered to the best that was seen.
	mostTries = 256
)

// instead returns a backend of the first set that is in all others, too, and can take the place of the tuple's
// destination: one on this node if there is one among mostTries, else any; nil if there is none.
func (t *Table) instead(all []portSet, tuple *packet.Tuple, wrapped bool) (best *backend) {
	h, n := flowHash(tuple), uint64(all[0].size())
	for i := range min(n, mostTries) {
		b := all[0].at(int((h>>32 + i) % n))
		if b.to == (packet.Endpoint{Addr: tuple.Dst, Port: tuple.DstPort}) || wrapped && t.addrs[b.to.Addr]&node != 0 || !inAll(all[1:], b) {
			continue
		}
		k := addrKey(b.to.Addr, b.to.Port, tuple.Proto)
		if t.here.has(k) {
			return b
		}
		if best == nil && !t.anywhere.has(k) {
			best = b
		}
	}
	return best
}

// inAll reports whether the server of b serves at the same address and port in all sets.
func inAll(sets []portSet, b *backend) bool {
	for i := range sets {
		if same := sets[i].backend(backendID(b.id&podMask, sets[i].port, b.to.Port)); same == nil || same.to != b.to {
			return false
		}
	}
	return true
}

// portAt finds a Service port: the unit of its Service, nil if there is none, and its index there.
func (t *Table) portAt(p *leaving.Port) (*unit, int) {
	i, svc := t.service(p.Namespace, p.Name)
	if svc == nil {
		return nil, 0
	}
	j := slices.IndexFunc(svc.Ports, func(q Port) bool { return q.Name == p.Port && q.Protocol == p.Proto })
	if j < 0 {
		return nil, 0
	}
	return t.units.At(i), j
}

// leavingID returns the portID of a Service port.
func leavingID(p *leaving.Port) uint64 {
	return portID(&Service{Namespace: p.Namespace, Name: p.Name}, &Port{Name: p.Port, Protocol: p.Proto})
}

// steers reports whether the tuple's destination is an endpoint that leaves the Service port for which Steer returned
// the backend.
func (t *Table) steers(tuple *packet.Tuple, backend uint64, port uint16) bool {
	ports := t.Leaving.Leaving(leaving.Key{Endpoint: packet.Endpoint{Addr: tuple.Dst, Port: tuple.DstPort}, Proto: tuple.Proto})
	for i := range ports {
		if backend&^podMask == backendID(0, leavingID(&ports[i]), port) {
			return true
		}
	}
	return false
}

// stand records how the endpoints on this node stand with a port of the Service, if clients on other nodes may be sent
// to them. serving are the endpoints that serve the port.
func (b *unitBuilder) stand(p *Port, serving []Target, to *piece) {
	if p.Protocol != packet.TCP || headless(b.s) && p.NodePort == 0 || b.place.node == "" {
		return
	}
	for _, t := range serving {
		e := t.Endpoint
		if e.Node != b.place.node {
			continue
		}
		is := leaving.Stays
		if e.Terminating && stateOf(b.s, e) != packet.BackendReady {
			is = leaving.Leaves
		}
		to.standing = append(to.standing, leaving.Endpoint{
			Key:      leaving.Key{Endpoint: packet.Endpoint{Addr: packet.AddrFrom(e.Addr), Port: t.Port}, Proto: p.Protocol},
			Port:     leaving.Port{Namespace: b.s.Namespace, Name: b.s.Name, Port: p.Name, Proto: p.Protocol},
			Standing: is,
		})
	}
}

// standings returns those of all units, with all of their parts: an endpoint may go from one part to another.
func standings(units []*unit) (list []leaving.Endpoint) {
	for _, u := range units {
		list = append(list, u.standing...)
		for _, p := range u.parts {
			list = append(list, p.standing...)
		}
	}
	return list
}
