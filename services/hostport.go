package services

import (
	"fmt"
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// HostPort is a port on this node's addresses that leads to a pod of this node (containers[].ports[].hostPort, or a
// port that a container runtime asks for).
type HostPort struct {
	Pod string // "namespace/name"
	ID  string // as Pod.ID
	// Addr is the node's address. The unspecified address of a family stands for all addresses of the node in that
	// family, including loopback.
	Addr     netip.Addr
	Port     uint16
	Protocol packet.Proto
	// To is the pod's address, of the same family as Addr, and the container's port.
	To netip.AddrPort
}

// hostPorts holds the HostPorts of a Config, compiled.
type hostPorts struct {
	served   []HostPort
	fronts   map[frontKey]backend // by address, or by nodePortKey for all addresses of a family
	ids      map[uint64]struct{}
	problems []Problem
}

// hostPortsOf compiles the HostPorts of t.config. The first HostPort to claim a port gets it. A NodePort takes
// precedence over HostPorts, since it is the same on every node.
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
			s := t.config.Services.At(int(f.service))
			h.problems = append(h.problems, Problem{"Pod " + p.Pod, fmt.Sprintf(
				"hostPort %d/%s is the node port of Service %s/%s, which keeps it; give the pod another hostPort",
				p.Port, protoName(p.Protocol), s.Namespace, s.Name)})
			continue
		}
		if _, taken := h.fronts[k]; taken {
			continue // reported by the maker of the Config, who knows the fields of the object
		}
		id := backendID(podID(p.ID, p.To.Addr()), hostPortID(p.Port, p.Protocol), p.To.Port())
		h.fronts[k] = backend{id, packet.Endpoint{Addr: packet.AddrFrom(p.To.Addr()), Port: p.To.Port()}}
		h.ids[id] = struct{}{}
		h.served = append(h.served, p)
	}
	return h
}

// hostPortID takes the place of portID in the backend ids of hostPorts.
func hostPortID(port uint16, proto packet.Proto) uint64 {
	return (hashString(fnvOffset, "hostPort") ^ uint64(port)<<8 ^ uint64(proto)) * fnvPrime
}

// at returns the pod behind a hostPort; its id is 0 when the destination is no hostPort.
func (h *hostPorts) at(tuple *packet.Tuple) backend {
	if len(h.fronts) == 0 {
		return backend{}
	}
	if b, ok := h.fronts[addrKey(tuple.Dst, tuple.DstPort, tuple.Proto)]; ok {
		return b
	}
	return h.fronts[nodePortKey(tuple.Dst.Is4(), tuple.DstPort, tuple.Proto)]
}

// PickOnHost is Pick for a client of a socket on this host. tuple.Dst is an address of the host, and may be a loopback
// address.
func (t *Table) PickOnHost(tuple *packet.Tuple) packet.Choice {
	l := t.atOnHost(tuple)
	return t.pick(&l, tuple)
}

// StaysOnHost reports whether the datagrams of a client of a socket on this host still go where PickOnHost sent them,
// choice: the backend serves, and tuple.Dst leads to the same Service port or hostPort.
func (t *Table) StaysOnHost(tuple *packet.Tuple, choice packet.Choice) bool {
	if t.Backend(choice.Backend, choice.To.Addr) < packet.BackendServing {
		return false
	}
	l := t.atOnHost(tuple)
	return t.stays(&l, choice.Backend, choice.To.Port)
}

// atOnHost returns where the tuple's destination leads clients of sockets on this host: to a hostPort before all else.
// An address of which nothing else is known leads to the node port, as the node's addresses do: loopback, and those of
// other interfaces that Places names.
func (t *Table) atOnHost(tuple *packet.Tuple) (l lead) {
	if l.pod = t.hosts.at(tuple); l.pod.id != 0 {
		return l
	}
	if l.front = t.find(socketKey(tuple.Dst, tuple.DstPort, tuple.Proto)); l.front != nil {
		return l
	}
	if l = t.at(tuple); l.front == nil && l.pod.id == 0 && l.kind&^(node|portless) == 0 {
		l.front = t.find(nodePortKey(tuple.Dst.Is4(), tuple.DstPort, tuple.Proto))
	}
	return l
}

// HostPorts returns the HostPorts that take effect. The caller must not change the list.
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
