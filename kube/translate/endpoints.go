package translate

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

// spot is an address and the pod that serves there. Several pods may have one address: permanently on the network of
// their node, and for a while when one terminates and another has got its address (discovery/v1 Endpoint.targetRef).
type spot struct {
	addr netip.Addr
	id   string
}

// standing is a spot in one state.
type standing struct {
	spot
	ready, serving, terminating bool
}

// endpoints joins the EndpointSlices of one Service. A spot may be in several slices: permanently when its pod has
// target ports that the others lack, and for a moment when the controller moves it (KEP-752: consumers must merge).
// Where the slices disagree about its state, the spot stays several endpoints, and the backend choice takes the one
// in the best state.
func endpoints(list []*discoveryv1.EndpointSlice, at site, say *kube.Report) []services.Endpoint {
	if tooMany(list, say) {
		return nil
	}
	var all []services.Endpoint
	known := map[standing]int{}
	several := map[int]*layers{} // the endpoints of known that occur in several slices, by index in all
	for _, s := range list {
		if s.AddressType == discoveryv1.AddressTypeFQDN {
			continue // deprecated, and no packet can use a name
		}
		said := len(say.Problems)
		ports := endpointPorts(s, say)
		for i := range s.Endpoints {
			e, ok := parseEndpoint(s, i, at, say)
			if !ok {
				continue
			}
			e.Ports = ports
			where := standing{spot{e.Addr, e.ID}, e.Ready, e.Serving, e.Terminating}
			i, again := known[where]
			if !again {
				known[where] = len(all)
				all = append(all, e)
				continue
			}
			if several[i] == nil {
				several[i] = newLayers(all[i])
			}
			several[i].add(e)
		}
		fewer(say, said, kube.RefOf(s))
	}
	for _, i := range slices.Sorted(maps.Keys(several)) {
		all[i] = several[i].list[0]
		all = append(all, several[i].list[1:]...)
	}
	slices.SortStableFunc(all, func(a, b services.Endpoint) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// tooMany reports whether the slices of one Service have more than can be served, and says so.
func tooMany(list []*discoveryv1.EndpointSlice, say *kube.Report) bool {
	n := pairs(list)
	if n > mostPairs {
		say.Errorf(kube.Ref{Kind: "Service", Namespace: list[0].Namespace, Name: list[0].Labels[discoveryv1.LabelServiceName]}, "endpoints",
			"its EndpointSlices have %d pairs of an address and a port, and %d can be served: all of them are left out; divide the Service into several", n, mostPairs)
	}
	return n > mostPairs
}

// mostPairs is how many pairs of an address and a port one Service may have: 10,000 addresses with ten ports, or 100
// with 1,000. Each pair is a backend with a state of its own, in every agent, while a user writes addresses and ports
// once.
const mostPairs = 100_000

// pairs returns how many pairs of an address and a port are in the slices of one Service.
func pairs(list []*discoveryv1.EndpointSlice) (n int) {
	for _, s := range list {
		n += len(s.Endpoints) * len(s.Ports)
	}
	return n
}

// mostTold is how many problems of one sort are reported of one object.
const mostTold = 5

// fewer shortens the problems of ref, which are those of say from index from on, to mostTold and one that counts the
// others.
func fewer(say *kube.Report, from int, ref kube.Ref) {
	if more := len(say.Problems) - from - mostTold; more > 1 {
		say.Problems = say.Problems[:from+mostTold]
		say.Errorf(ref, "", "%d more of its addresses and ports cannot be used and are left out, too", more)
	}
}

// layers joins endpoints of one standing. A layer has at most one port of each name and protocol. There may be
// several layers, because slices that name no pod may have one address serve a port of the Service at several
// numbers.
type layers struct {
	list []services.Endpoint
	of   map[namedPort]map[uint16]int // the layer of each port number
}

// namedPort is a port's name and protocol.
type namedPort struct {
	name  string
	proto packet.Proto
}

func newLayers(first services.Endpoint) *layers {
	ports := first.Ports
	first.Ports = make([]services.EndpointPort, 0, 2*len(ports)) // the endpoints of a slice share their list
	l := &layers{list: []services.Endpoint{first}, of: make(map[namedPort]map[uint16]int, len(ports))}
	first.Ports = ports
	l.add(first)
	return l
}

// add adds the ports of one more endpoint.
func (l *layers) add(e services.Endpoint) {
	for _, p := range e.Ports {
		k := namedPort{p.Name, p.Protocol}
		if l.of[k] == nil {
			l.of[k] = map[uint16]int{}
		}
		if _, known := l.of[k][p.Port]; known {
			continue
		}
		n := len(l.of[k])
		l.of[k][p.Port] = n
		if n == len(l.list) {
			further := e
			further.Ports = nil
			l.list = append(l.list, further)
		}
		l.list[n].Ports = append(l.list[n].Ports, p)
	}
}

func endpointPorts(s *discoveryv1.EndpointSlice, say *kube.Report) []services.EndpointPort {
	var list []services.EndpointPort
	for i, p := range s.Ports {
		if p.Port == nil {
			continue // nil means "all ports", which no Service can use: its ports all have numbers
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
	// The addresses of one endpoint are alternatives: any of them will do (discovery/v1 Endpoint.addresses).
	addr, err := netip.ParseAddr(obj.Addresses[0])
	if err != nil || addr.Is4In6() || addr.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4) {
		say.Errorf(kube.RefOf(s), field, "%q is no %s address: expected one like those of pods", obj.Addresses[0], s.AddressType)
		return services.Endpoint{}, false
	}
	// An address with a meaning to the host itself must never get a packet. The API server refuses it for the same
	// reason.
	if what := addressing.Special(addr); what != "" {
		say.Errorf(kube.RefOf(s), field, "%s is %s, which no backend can have: name the address of a pod or of a host", addr, what)
		return services.Endpoint{}, false
	}
	e := services.Endpoint{
		Addr: addr,
		ID:   idOf(obj, addr),
		Node: deref(obj.NodeName, ""),
		// An absent condition counts as ready, and as serving when ready (discovery/v1 EndpointConditions).
		Ready:       deref(obj.Conditions.Ready, true),
		Terminating: deref(obj.Conditions.Terminating, false),
	}
	e.Serving = deref(obj.Conditions.Serving, e.Ready)
	if h := obj.Hints; h != nil {
		e.ForNode = hintOf(h.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == at.Node })
		e.ForZone = hintOf(h.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == at.topologyZone })
	}
	return e, true
}

// idOf identifies who serves at an endpoint's address: the pod by its UID, or else the address itself.
func idOf(obj *discoveryv1.Endpoint, addr netip.Addr) string {
	if ref := obj.TargetRef; ref != nil && ref.Kind == "Pod" && ref.UID != "" {
		return string(ref.UID)
	}
	return addr.String()
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
