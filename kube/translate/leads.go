package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/services"
)

// leadStage takes from Services the endpoints that lead nowhere, or back to a Service: EndpointSlices are written by
// users, and an endpoint may be at any address. A pod's is one, also of another namespace, and a node's.
type leadStage struct {
	key      leadKey
	services memo[*services.Service, *services.Service]
}

// leads says where endpoints lead.
type leads struct {
	around
	claims *claims
}

// leadKey is what that hangs on.
type leadKey struct {
	ranges list[netip.Prefix]
	nodes  list[netip.Addr]
	claims int
}

// mostTold bounds what is told of one object that has any number of mistakes of one kind.
const mostTold = 5

func (s *leadStage) of(joined []*services.Service, l leads, say *kube.Report) []*services.Service {
	key := leadKey{identity(l.ranges), identity(l.nodes.addrs), l.claims.version}
	if s.key != key {
		*s = leadStage{key: key}
	}
	return s.services.each(joined, compareServices, nil, say, l.leading)
}

func compareServices(a, b *services.Service) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// leading gives a Service without the endpoints that lead nowhere.
func (l *leads) leading(s *services.Service, say *kube.Report) *services.Service {
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

// leadingPorts gives the ports of an endpoint that lead somewhere, and what is wrong with the others; "" for nothing.
func (l *leads) leadingPorts(e *services.Endpoint) (ports []services.EndpointPort, why string) {
	const advice = "and no packet is translated twice: name the addresses of its endpoints"
	if owner := l.claims.owner(claim{addr: e.Addr}); owner != nil {
		return nil, fmt.Sprintf("%s is the cluster address of %s, %s", e.Addr, owner.ref(), advice)
	}
	if in, found := serviceRange(l.ranges, e.Addr); found {
		return nil, fmt.Sprintf("%s lies in the service range %s, where only Services are, %s", e.Addr, in, advice)
	}
	if _, isNode := slices.BinarySearchFunc(l.nodes.addrs, e.Addr, netip.Addr.Compare); !isNode {
		return e.Ports, ""
	}
	for i, p := range e.Ports {
		owner := l.claims.owner(claim{port: p.Port, proto: p.Protocol})
		if owner == nil || !owner.hasNodePort(p.Port, p.Protocol) { // somebody's health checks, perhaps
			if why != "" {
				ports = append(ports, p)
			}
			continue
		}
		if why == "" {
			ports = slices.Clone(e.Ports[:i])
		}
		why = fmt.Sprintf("%s %d/%s is the node port of %s, %s", e.Addr, p.Port, protoName(p.Protocol), owner.ref(), advice)
	}
	if why == "" {
		ports = e.Ports
	}
	return ports, why
}
