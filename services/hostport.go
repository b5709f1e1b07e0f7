package services

import (
	"fmt"
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// HostPort is a port of this node's addresses that leads to a pod of this node (containers[].ports[].hostPort, or what
// a container runtime asks for).
type HostPort struct {
	Pod string // "namespace/name"
	ID  string // as Pod.ID
	// Addr is the node's address. The unspecified one of a family stands for every address of the node of that
	// family, loopback included.
	Addr     netip.Addr
	Port     uint16
	Protocol packet.Proto
	// To is the pod's address, of the same family, and the container's port.
	To netip.AddrPort
}

// hostPorts are the HostPorts of a Config, compiled.
type hostPorts struct {
	served   []HostPort
	fronts   map[frontKey]backend // by address, or by nodePortKey for all of a family
	ids      map[uint64]struct{}
	problems []Problem
}

// hostPortsOf compiles the HostPorts of t.config. Whoever comes later loses what another has; a NodePort comes before
// all, for it is the same on every node.
func (t *Table) hostPortsOf() hostPorts {
	var h hostPorts
	if len(t.config.HostPorts) == 0 {
		return h
	}
	h.fronts = make(map[frontKey]backend, len(t.config.HostPorts))
	h.ids = make(map[uint64]struct{}, len(t.config.HostPorts))
	for _, p := range t.config.HostPorts {
		k, all := addrKey(packet.AddrFrom(p.Addr), p.Port, p.Protocol), nodePortKey(p.Addr.Is4(), p.Port, p.Protocol)
		if p.Addr.IsUnspecified() {
			k = all
		}
		if f := t.find(all); f != nil {
			s := t.config.Services[f.service]
			h.problems = append(h.problems, Problem{"Pod " + p.Pod, fmt.Sprintf(
				"hostPort %d/%s is the node port of Service %s/%s, which keeps it; give the pod another hostPort",
				p.Port, protoName(p.Protocol), s.Namespace, s.Name)})
			continue
		}
		if _, taken := h.fronts[k]; taken {
			continue // said by whoever made the Config, which knows the fields
		}
		id := backendID(podID(p.ID, p.To.Addr()), hostPortID(p.Port, p.Protocol), p.To.Port())
		h.fronts[k] = backend{id, packet.Endpoint{Addr: packet.AddrFrom(p.To.Addr()), Port: p.To.Port()}}
		h.ids[id] = struct{}{}
		h.served = append(h.served, p)
	}
	return h
}

// hostPortID stands in ids of backends where portID does for a Service port.
func hostPortID(port uint16, proto packet.Proto) uint64 {
	return (hashString(fnvOffset, "hostPort") ^ uint64(port)<<8 ^ uint64(proto)) * fnvPrime
}

// pick finds the pod behind a port of the node.
func (h *hostPorts) pick(tuple *packet.Tuple) (packet.Choice, bool) {
	if len(h.fronts) == 0 {
		return packet.Choice{}, false
	}
	b, ok := h.fronts[addrKey(tuple.Dst, tuple.DstPort, tuple.Proto)]
	if !ok {
		b, ok = h.fronts[nodePortKey(tuple.Dst.Is4(), tuple.DstPort, tuple.Proto)]
	}
	return packet.Choice{Kind: packet.Picked, Backend: b.id, To: b.to}, ok
}

// PickOnHost is Pick for a client of a socket on this host, whose tuple.Dst is an address of the host, loopback
// perhaps.
func (t *Table) PickOnHost(tuple *packet.Tuple) packet.Choice {
	if c, ok := t.hosts.pick(tuple); ok {
		return c
	}
	if tuple.Dst.Netip().IsLoopback() {
		if f := t.find(nodePortKey(tuple.Dst.Is4(), tuple.DstPort, tuple.Proto)); f != nil {
			return t.choose(f, tuple)
		}
	}
	return t.Pick(tuple)
}

// HostPorts are the hostPorts of this node that can be served. Borrowed: they must not be changed.
func (t *Table) HostPorts() []HostPort { return t.hosts.served }

// isOwn reports whether a is one of this node's own addresses.
func (t *Table) isOwn(a *packet.Addr) bool {
	for i := range t.own {
		if t.own[i] == *a {
			return true
		}
	}
	return false
}
