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
	parts    byService[*services.Part, *led]
}

// leads has the inputs that say where an endpoint leads.
type leads struct {
	around
	claims *claims
	parts  *byService[*services.Part, *led] // what became of parts; filled in by the stage
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
	l.parts = &s.parts
	out := s.services.each(joined, compareServices, nil, say, l.leading)
	s.parts.only(joined)
	return out
}

func compareServices(a, b *services.Service) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// leading returns a Service without the endpoints that lead nowhere.
func (l *leads) leading(s *services.Service, say *kube.Report) *services.Service {
	l.warnHeaders(s, say)
	list, wrong := l.those(s.Endpoints)
	parts, more := l.ofParts(s)
	if wrong.add(more); wrong.n == 0 {
		return s
	}
	ref := kube.Ref{Kind: "Service", Namespace: s.Namespace, Name: s.Name}
	for _, why := range wrong.first {
		say.Errorf(ref, "endpoints", "%s", why)
	}
	if wrong.n > mostTold {
		say.Errorf(ref, "endpoints", "%d more lead to Services or node ports and are left out, too", wrong.n-mostTold)
	}
	out := *s
	out.Endpoints, out.Parts = list, parts
	return &out
}

// faults are endpoints that lead nowhere: how many there are, and what is wrong with the first of them.
type faults struct {
	n     int
	first []string
}

func (f *faults) add(g faults) {
	f.n += g.n
	f.first = append(f.first, g.first[:min(len(g.first), mostTold-len(f.first))]...)
}

// those returns the endpoints of a list that lead somewhere: the list itself when all do.
func (l *leads) those(list []services.Endpoint) (out []services.Endpoint, wrong faults) {
	for i := range list {
		e := list[i]
		ports, why := l.leadingPorts(&e)
		if why != "" {
			if wrong.n == 0 {
				out = slices.Clone(list[:i])
			}
			wrong.add(faults{1, []string{why}})
			if e.Ports = ports; len(ports) == 0 {
				continue
			}
		}
		if wrong.n > 0 {
			out = append(out, e)
		}
	}
	if wrong.n == 0 {
		out = list
	}
	return out, wrong
}

// led is what became of a part of a Service's endpoints.
type led struct {
	part  *services.Part
	wrong faults
}

// ofParts is those for the parts of a Service. A part that was there before is not looked at again.
func (l *leads) ofParts(s *services.Service) (list []*services.Part, wrong faults) {
	if len(s.Parts) == 0 {
		return nil, wrong
	}
	known, next := l.parts.turn(objectName{s.Namespace, s.Name}, len(s.Parts))
	for _, p := range s.Parts {
		x := known[p]
		if x == nil {
			x = &led{part: p}
			var those []services.Endpoint
			if those, x.wrong = l.those(p.Endpoints); x.wrong.n > 0 {
				x.part = &services.Part{Endpoints: those}
			}
		}
		next[p] = x
		wrong.add(x.wrong)
		list = append(list, x.part)
	}
	return list, wrong
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
