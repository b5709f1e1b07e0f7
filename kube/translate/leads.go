package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
)

// leadStage takes from Services the endpoints that lead nowhere, or back to a Service. Users write EndpointSlices,
// and an endpoint may have any address. Addresses of pods, also of another namespace, and of nodes are allowed.
type leadStage struct {
	key      leadKey
	services rolled[*services.Service, *services.Service]
}

// leads has the inputs that say where an endpoint leads.
type leads struct {
	around
	claims *claims
}

// leadKey identifies the inputs on which the stage's results depend.
type leadKey struct {
	ranges list[netip.Prefix]
	nodes  list[netip.Addr]
	claims int
}

func (s *leadStage) of(joined roll.List[*services.Service], l leads, say *kube.Report) roll.List[*services.Service] {
	key := leadKey{identity(l.ranges), identity(l.nodes.addrs), l.claims.version}
	if s.key != key {
		*s = leadStage{key: key}
	}
	return s.services.each(joined, compareServices, nil, say, l.leading)
}

func compareServices(a, b *services.Service) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// leading returns a Service without the endpoints that lead nowhere.
func (l *leads) leading(s *services.Service, say *kube.Report) *services.Service {
	l.warnHeaders(s, say)
	out, wrong := s, 0
	for i := range s.Endpoints {
		e := s.Endpoints[i]
		ports, why := l.leadingPorts(&e)
		if why != "" {
			if wrong++; wrong == 1 {
				clone := *s
				clone.Endpoints = slices.Clone(s.Endpoints[:i])
				out = &clone
			}
			if wrong <= mostTold {
				say.Errorf(kube.Ref{Kind: "Service", Namespace: s.Namespace, Name: s.Name}, "endpoints", "%s", why)
			}
			if e.Ports = ports; len(ports) == 0 {
				continue
			}
		}
		if wrong > 0 {
			out.Endpoints = append(out.Endpoints, e)
		}
	}
	if wrong > mostTold {
		say.Errorf(kube.Ref{Kind: "Service", Namespace: s.Namespace, Name: s.Name}, "endpoints", "%d more lead to Services or node ports and are left out, too", wrong-mostTold)
	}
	return out
}

// warnHeaders tells where a Service asks for the PROXY protocol in vain: host sockets speak it, and these are at
// addresses of nodes.
func (l *leads) warnHeaders(s *services.Service, say *kube.Report) {
	if s.Proxy == 0 {
		return
	}
	told := 0
	for _, a := range slices.Concat(s.ExternalIPs, s.SocketIPs) {
		if l.isNode(a) {
			continue
		}
		if told++; told > mostTold {
			return
		}
		say.Warnf(kube.Ref{Kind: "Service", Namespace: s.Namespace, Name: s.Name}, annotation(kube.ProxyProtocolAnnotation),
			"it has no effect at %s, which is no node's address: ask for the addresses of a pool of nodes, or leave it out", a)
	}
}

// isNode reports whether a is an address of a node.
func (l *leads) isNode(a netip.Addr) bool {
	_, is := slices.BinarySearchFunc(l.nodes.addrs, a, netip.Addr.Compare)
	return is
}

// leadingPorts returns the ports of an endpoint that lead somewhere, and what is wrong with the others, or "".
func (l *leads) leadingPorts(e *services.Endpoint) (ports []services.EndpointPort, why string) {
	const advice = "and no packet is translated twice: name the addresses of its endpoints"
	if owner := l.claims.owner(claim{addr: e.Addr}); owner != nil {
		return nil, fmt.Sprintf("%s is the cluster address of %s, %s", e.Addr, owner.ref(), advice)
	}
	if in, found := serviceRange(l.ranges, e.Addr); found {
		return nil, fmt.Sprintf("%s lies in the service range %s, where only Services are, %s", e.Addr, in, advice)
	}
	isNode := l.isNode(e.Addr)
	for i, p := range e.Ports {
		what, owner := "the address of a load balancer for", l.claims.owner(claim{addr: e.Addr, port: p.Port, proto: p.Protocol})
		if owner == nil && isNode {
			what, owner = "the node port of", l.claims.owner(claim{port: p.Port, proto: p.Protocol})
			if owner != nil && !owner.hasNodePort(p.Port, p.Protocol) {
				owner = nil // the claim is one for health checks
			}
		}
		if owner == nil {
			if why != "" {
				ports = append(ports, p)
			}
			continue
		}
		if why == "" {
			ports = slices.Clone(e.Ports[:i])
		}
		why = fmt.Sprintf("%s %d/%s is %s %s, %s", e.Addr, p.Port, protoName(p.Protocol), what, owner.ref(), advice)
	}
	if why == "" {
		ports = e.Ports
	}
	return ports, why
}
