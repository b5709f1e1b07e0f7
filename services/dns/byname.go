package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/netstack/packet"
)

// known is a Service with its endpoints by name. The first question that needs them sorts them out. Successive views
// share the known of a Service that has not changed.
type known struct {
	*Service
	byName func() *byName
}

func newKnown(s *Service) *known {
	return &known{s, sync.OnceValue(func() *byName { return newByName(s.Endpoints) })}
}

// byName has the endpoints of one Service in the form in which questions ask for them. So the cost of a question
// depends on the answer alone, and not on the number of endpoints. It never changes.
type byName struct {
	all    addrs
	labels map[string]addrs // the label is the endpoint's name below the Service
	ports  map[portName][]target
}

// portName is what SRV records call a port of a Service.
type portName struct {
	name  string
	proto packet.Proto
}

// target is what one SRV record points at: the label of an endpoint, and its port.
type target struct {
	label string
	port  uint16
}

func newByName(list []Endpoint) *byName {
	x := &byName{labels: make(map[string]addrs, len(list)), ports: map[portName][]target{}}
	type both struct {
		portName
		target
	}
	targets := map[both]bool{}
	all, labels := make([]netip.Addr, 0, len(list)), make(map[string][]netip.Addr, len(list))
	for i := range list {
		e := &list[i]
		label := endpointLabel(e)
		all = append(all, e.Addr)
		labels[label] = append(labels[label], e.Addr)
		for _, p := range e.Ports {
			b := both{portName{p.Name, p.Protocol}, target{label, p.Port}}
			if !targets[b] { // both addresses of a dual-stack pod have one name
				targets[b] = true
				x.ports[b.portName] = append(x.ports[b.portName], b.target)
			}
		}
	}
	x.all = newAddrs(all)
	for label, list := range labels {
		x.labels[label] = newAddrs(list)
	}
	return x
}

// addrs is a set of addresses.
type addrs struct {
	list []netip.Addr // IPv4 first
	v4   int          // the number of IPv4 addresses
}

// newAddrs takes list over and sorts it.
func newAddrs(list []netip.Addr) addrs {
	for i, a := range list {
		list[i] = a.Unmap()
	}
	slices.SortFunc(list, netip.Addr.Compare)
	list = slices.Compact(list)
	v4, _ := slices.BinarySearchFunc(list, 128, func(a netip.Addr, bits int) int { return a.BitLen() - bits })
	return addrs{list, v4}
}

// of returns the addresses that records of a type can hold.
func (as addrs) of(qtype uint16) []netip.Addr {
	switch qtype {
	case dns.TypeA:
		return as.list[:as.v4]
	case dns.TypeAAAA:
		return as.list[as.v4:]
	}
	return nil
}

// pick returns most elements of list, chosen at random, or all if there are fewer. Their order is random, since many
// clients use only the first address. The cost depends on the number of chosen elements alone.
func pick[T any](list []T, most int) []T {
	n := len(list)
	switch {
	case n <= 1:
		return list
	case n <= most:
		out := slices.Clone(list)
		rand.Shuffle(n, func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
	// The loop is the first steps of a Fisher-Yates shuffle. moved has the elements that the shuffle would have moved.
	out, moved := make([]T, most), make(map[int]int, most)
	at := func(i int) int {
		if j, ok := moved[i]; ok {
			return j
		}
		return i
	}
	for i := range out {
		j := i + rand.IntN(n-i)
		out[i] = list[at(j)]
		moved[j] = at(i)
	}
	return out
}
