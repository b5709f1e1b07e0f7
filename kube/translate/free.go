package translate

import (
	"fmt"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/services"
)

var (
	// apiServer is the Service whose endpoints are the API servers.
	apiServer = objectName{"default", "kubernetes"}
	// kubeDNS is the Service that pods ask for names.
	kubeDNS = objectName{"kube-system", "kube-dns"}
)

// freeStage takes from Services the addresses that belong to something else. Packets for an address of a Service go
// to its endpoints instead of to the address's owner. So a Service with the address of a pod, a node or cluster DNS
// would receive what is meant for the owner. An API server assigns cluster addresses from the service ranges only. A
// load balancer's addresses stand in the status, where everybody with a right on services/status may write anything.
type freeStage struct {
	key    takenKey
	fronts memo[*front, *front]
}

// taken has the inputs that say which addresses are taken.
type taken struct {
	around
	servers []*discoveryv1.EndpointSlice // of the API servers
}

// takenKey identifies the inputs on which the stage's results depend.
type takenKey struct {
	announced, ranges, pods list[netip.Prefix]
	nodes, egress           list[netip.Addr]
	servers                 list[*discoveryv1.EndpointSlice]
	dns                     *front // nil when there is no such Service
}

func (s *freeStage) of(parsed []*front, t taken, say *kube.Report) []*front {
	dns := findFront(parsed, kubeDNS)
	key := takenKey{identity(t.announced), identity(t.ranges), identity(t.nodes.netstack.ClusterCIDRs), identity(t.nodes.addrs), identity(t.egress), identity(t.servers), dns}
	if s.key != key {
		*s = freeStage{key: key}
	}
	at := DefaultDNSAddrs(t.announced)
	if dns != nil && len(dns.ClusterIPs) > 0 {
		at = dns.ClusterIPs
	}
	servers := endpoints(t.servers, t.site, new(kube.Report)) // reported where the Service is joined
	return s.fronts.each(parsed, compareFronts, nil, say, func(f *front, say *kube.Report) *front {
		var lost losses
		said := len(say.Problems)
		for i := range f.claims {
			k := &f.claims[i]
			if !k.addr.IsValid() || k.port != 0 {
				continue
			}
			why := t.taken(f, k, at)
			if why == "" && k.outside {
				why = listening(f, k.addr, servers)
			}
			if why != "" {
				say.Errorf(f.ref(), k.field, "%s %s", k.addr, why)
				lost.add(k)
			}
		}
		fewer(say, said, f.ref())
		return f.without(&lost)
	})
}

// taken says what owns the address that f claims with k, or returns "" when only Services may. dns holds the
// addresses of cluster DNS.
func (t *taken) taken(f *front, k *claimed, dns []netip.Addr) string {
	in, inRange := serviceRange(t.ranges, k.addr)
	pods, inPods := containing(t.nodes.netstack.ClusterCIDRs, k.addr)
	_, isNode := slices.BinarySearchFunc(t.nodes.addrs, k.addr, netip.Addr.Compare)
	switch {
	case slices.Contains(dns, k.addr) && f.Namespace != kubeDNS.namespace:
		return fmt.Sprintf("is where pods ask for names, and only a Service in namespace %s may have it: choose another address", kubeDNS.namespace)
	case k.outside && inRange:
		return fmt.Sprintf("lies in the service range %s, where only cluster addresses are: have the load balancer give another", in)
	case inPods && !inRange:
		return fmt.Sprintf("lies in the range of pods %s: choose an address outside of it", pods)
	case slices.Contains(t.egress, k.addr):
		return "is an address from which pods leave (EgressAddress), and what it sends would pass for theirs: choose another address"
	case isNode && !k.outside:
		return "is an address of a node: choose an address out of the service range"
	}
	return ""
}

// listening returns a message when an API server listens on the external address a at a port of f, and "" otherwise.
// Only address and port together are refused, because load balancers that run on nodes hand out the nodes' addresses.
func listening(f *front, a netip.Addr, servers []services.Endpoint) string {
	for i := range servers {
		for _, sp := range servers[i].Ports {
			if servers[i].Addr == a && slices.ContainsFunc(f.Ports, func(p services.Port) bool { return p.Port == sp.Port && p.Protocol == sp.Protocol }) {
				return fmt.Sprintf("%d/%s is where an API server listens: choose another port or address", sp.Port, protoName(sp.Protocol))
			}
		}
	}
	return ""
}

// findFront returns the Service of that name, or nil.
func findFront(sorted []*front, name objectName) *front {
	i, found := indexOf(sorted, name)
	if !found {
		return nil
	}
	return sorted[i]
}

// serviceRange returns the first service range that contains the address. The ranges are few, and may contain one
// another.
func serviceRange(ranges []netip.Prefix, a netip.Addr) (netip.Prefix, bool) {
	for _, p := range ranges {
		if p.Contains(a) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// containing returns the range that contains the address. ranges must be sorted, and no two may overlap.
func containing(ranges []netip.Prefix, a netip.Addr) (netip.Prefix, bool) {
	i, found := slices.BinarySearchFunc(ranges, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	if !found {
		i--
	}
	if i < 0 || !ranges[i].Contains(a) {
		return netip.Prefix{}, false
	}
	return ranges[i], true
}
