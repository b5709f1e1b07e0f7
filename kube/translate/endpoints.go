package translate

import (
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

// endpoints joins the EndpointSlices of one Service. An address may be in several of them, for good when its pod has
// target ports the others have not, and for a moment when the controller moves it (KEP-752: consumers must merge).
func endpoints(list []*discoveryv1.EndpointSlice, at site, say *kube.Report) []services.Endpoint {
	var all []services.Endpoint
	known := map[netip.Addr]int{}
	further := map[int][][]services.EndpointPort{} // the ports of an endpoint in slices after its first
	for _, s := range list {
		if s.AddressType == discoveryv1.AddressTypeFQDN {
			continue // deprecated, and of no use to a packet
		}
		ports := endpointPorts(s, say)
		for i := range s.Endpoints {
			e, ok := parseEndpoint(s, i, at, say)
			if !ok {
				continue
			}
			e.Ports = ports
			if i, twice := known[e.Addr]; twice {
				all[i] = mergeEndpoint(all[i], e)
				further[i] = append(further[i], ports)
				continue
			}
			known[e.Addr] = len(all)
			all = append(all, e)
		}
	}
	for i, lists := range further {
		all[i].Ports = mergePorts(all[i].Ports, lists)
	}
	slices.SortFunc(all, func(a, b services.Endpoint) int { return a.Addr.Compare(b.Addr) })
	return all
}

// mergeEndpoint gives a with what b says of its state.
func mergeEndpoint(a, b services.Endpoint) services.Endpoint {
	a.Ready = a.Ready || b.Ready
	a.Serving = a.Serving || b.Serving
	a.Terminating = a.Terminating && b.Terminating
	return a
}

// mergePorts adds further lists to one, which is not changed: endpoints of a slice share theirs. Of ports that serve
// the same, the first is kept.
func mergePorts(list []services.EndpointPort, further [][]services.EndpointPort) []services.EndpointPort {
	type key struct {
		name  string
		proto packet.Proto
	}
	known := make(map[key]bool, len(list))
	for _, p := range list {
		known[key{p.Name, p.Protocol}] = true
	}
	list = slices.Clone(list)
	for _, more := range further {
		for _, p := range more {
			if k := (key{p.Name, p.Protocol}); !known[k] {
				known[k] = true
				list = append(list, p)
			}
		}
	}
	return list
}

func endpointPorts(s *discoveryv1.EndpointSlice, say *kube.Report) []services.EndpointPort {
	var list []services.EndpointPort
	for i, p := range s.Ports {
		if p.Port == nil {
			continue // "all ports" has no meaning for a Service, whose ports are all numbered
		}
		ep := services.EndpointPort{}
		if p.Name != nil {
			ep.Name = *p.Name
		}
		var ok bool
		if ep.Port, ok = portOf(*p.Port); !ok {
			say.Errorf(kube.RefOf(s), index("ports", i)+".port", "%d is not a port: expected 1 to 65535", *p.Port)
			continue
		}
		ep.Protocol, _ = protoOf("")
		if p.Protocol != nil {
			if ep.Protocol, ok = protoOf(*p.Protocol); !ok {
				say.Errorf(kube.RefOf(s), index("ports", i)+".protocol", "%q is not a protocol of Services: expected TCP, UDP or SCTP", *p.Protocol)
				continue
			}
		}
		list = append(list, ep)
	}
	return list
}

func parseEndpoint(s *discoveryv1.EndpointSlice, i int, at site, say *kube.Report) (services.Endpoint, bool) {
	obj := &s.Endpoints[i]
	field := index("endpoints", i) + ".addresses"
	if len(obj.Addresses) == 0 {
		say.Errorf(kube.RefOf(s), field, "is empty: expected one address")
		return services.Endpoint{}, false
	}
	// The addresses of one endpoint are alternatives, and the first is as good as any (discovery/v1
	// Endpoint.addresses).
	addr, err := netip.ParseAddr(obj.Addresses[0])
	if err != nil || addr.Is4In6() || addr.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4) {
		say.Errorf(kube.RefOf(s), field, "%q is no %s address: expected one like those of pods", obj.Addresses[0], s.AddressType)
		return services.Endpoint{}, false
	}
	// What means something to the host itself must never get a packet; the API server refuses it for the same reason.
	if what := addressing.Special(addr); what != "" {
		say.Errorf(kube.RefOf(s), field, "%s is %s, which no backend can have: name the address of a pod or of a host", addr, what)
		return services.Endpoint{}, false
	}
	e := services.Endpoint{
		Addr: addr,
		ID:   addr.String(),
		Node: deref(obj.NodeName, ""),
		// An absent condition counts as ready, and as serving when ready (discovery/v1 EndpointConditions).
		Ready:       deref(obj.Conditions.Ready, true),
		Terminating: deref(obj.Conditions.Terminating, false),
	}
	e.Serving = deref(obj.Conditions.Serving, e.Ready)
	if h := obj.Hints; h != nil {
		e.ForNode = hintOf(h.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == at.Node })
		e.ForZone = hintOf(h.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == at.zone })
	}
	if ref := obj.TargetRef; ref != nil && ref.Kind == "Pod" && ref.UID != "" {
		e.ID = string(ref.UID)
	}
	return e, true
}

func hintOf[T any](list []T, here func(T) bool) services.Hint {
	switch {
	case len(list) == 0:
		return services.NoHint
	case slices.ContainsFunc(list, here):
		return services.Here
	}
	return services.Elsewhere
}
