package services

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tapestry.dev/tapestry/netstack/packet"
)

// NodePort is a port that the Table answers on node addresses.
type NodePort struct {
	Service  string // "namespace/name"
	Port     uint16
	Protocol packet.Proto
	// IPv4 and IPv6 say which clients are served at node addresses of that family.
	IPv4, IPv6 Served
	Proxy      uint8 // see Service.Proxy
}

// Served says which clients of a NodePort get a backend.
type Served uint8

// ServedInside means that only clients inside the cluster get a backend, this node's own processes among them: the
// traffic policy is Local, and this node has no backend.
const (
	ServedNone Served = iota
	ServedInside
	ServedAll
)

// NodePorts returns the node ports of the Table, sorted by port and protocol. The host has to listen on them.
func (t *Table) NodePorts() []NodePort {
	at := map[portKey]*NodePort{}
	for _, i := range t.nodePorts {
		f := &t.fronts[i]
		k := portKey{f.key.port, f.key.proto}
		p := at[k]
		if p == nil {
			s := t.config.Services.At(int(f.service))
			p = &NodePort{Service: s.Namespace + "/" + s.Name, Port: k.port, Protocol: k.proto, Proxy: s.Proxy}
			at[k] = p
		}
		if f.key.is4 != 0 {
			p.IPv4 = t.served(f)
		} else {
			p.IPv6 = t.served(f)
		}
	}
	var ports []NodePort
	for _, p := range at {
		ports = append(ports, *p)
	}
	slices.SortFunc(ports, func(a, b NodePort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	return ports
}

// HasNodePort reports whether a Service has the node port in that family, even if nobody is served there.
func (t *Table) HasNodePort(is4 bool, port uint16, proto packet.Proto) bool {
	return t.find(nodePortKey(is4, port, proto)) != nil
}

// HasFrontend reports whether an address and port is a frontend of a Service, or of cluster DNS, other than a node
// port. A frontend that only clients of host sockets use is one, too.
func (t *Table) HasFrontend(at netip.AddrPort, proto packet.Proto) bool {
	addr := packet.AddrFrom(at.Addr())
	return t.find(addrKey(addr, at.Port(), proto)) != nil || t.find(socketKey(addr, at.Port(), proto)) != nil
}

func (t *Table) served(f *front) Served {
	sets := t.units.At(int(f.service)).sets
	switch {
	case sets[f.set].size() > 0:
		return ServedAll
	case sets[f.inside].size() > 0:
		return ServedInside
	}
	return ServedNone
}

// Row describes a frontend for people. Policy is Cluster or Local, Affinity is None or ClientIP, Choice is a
// balance.Method. If there are no backends, Backends says why.
type Row struct{ Service, Port, Frontend, Protocol, Policy, Affinity, Choice, Backends string }

// Rows returns one row per frontend, sorted by Service, port and frontend.
func (t *Table) Rows() []Row {
	rows := make([]Row, 0, len(t.fronts))
	for i := range t.fronts {
		rows = append(rows, t.row(t.fronts[i].key, &t.fronts[i]))
	}
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Frontend, b.Frontend), cmp.Compare(a.Protocol, b.Protocol))
	})
	return rows
}

func (t *Table) row(k frontKey, f *front) Row {
	if f.service == noService {
		return Row{"(cluster DNS)", "dns", k.String(), protoName(k.proto), "", "", "", "this node"}
	}
	s := t.config.Services.At(int(f.service))
	p := &s.Ports[f.port]
	name := p.Name
	if name == "" {
		name = strconv.Itoa(int(p.Port))
	}
	local, affinity := s.ExternalLocal, "None"
	if slices.Contains(s.ClusterIPs, k.addr.Netip()) {
		local = s.InternalLocal
	}
	policy := "Cluster"
	if local {
		policy = "Local"
	}
	if f.affinity {
		affinity = "ClientIP"
	}
	return Row{s.Namespace + "/" + s.Name, name, k.String(), protoName(k.proto), policy, affinity, methodOf(s).String(), t.units.At(int(f.service)).sets[f.set].String()}
}

func (k frontKey) String() string {
	switch {
	case k.addr != (packet.Addr{}):
		return netip.AddrPortFrom(k.addr.Netip(), k.port).String()
	case k.is4 != 0:
		return "node(IPv4):" + strconv.Itoa(int(k.port))
	default:
		return "node(IPv6):" + strconv.Itoa(int(k.port))
	}
}

// mostShown is how many backends of a frontend people are shown.
const mostShown = 20

func (s *set) String() string {
	switch {
	case s.size() > 0:
		var out []string
		for i := range s.size() {
			out = append(out, s.at(i).to.AddrPort().String())
		}
		slices.Sort(out)
		if more := len(out) - mostShown; more > 0 {
			out = append(out[:mostShown], fmt.Sprintf("and %d more", more))
		}
		return strings.Join(out, ",")
	case s.empty == packet.DropLocal:
		return "none here (dropped)"
	default:
		return "none (refused)"
	}
}
