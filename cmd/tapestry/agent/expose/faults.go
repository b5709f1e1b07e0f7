package expose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/services"
)

// facts are what faults goes by.
type facts struct {
	node string
	// ranges are those that 'tapestry host-tap' routed into the host TAP; with none there is nothing to find.
	ranges []netip.Prefix
	// exposed are the Services with addresses for clients outside, and ways is the kernel's way to each of the
	// addresses.
	exposed []services.Exposed
	ways    map[netip.Addr]tap.Way
	// off4 and off6 are the settings because of which the kernel does not forward, by family.
	off4, off6 []string
}

// faults says why clients outside do not reach addresses of load balancers by this node, the node's own faults first.
// Each Service has one problem at most.
func faults(f *facts) (list []kube.Problem) {
	if len(f.ranges) == 0 {
		return nil
	}
	var of []kube.Problem
	uses4, uses6 := false, false
	for _, s := range f.exposed {
		why := ""
		for _, a := range s.Addrs {
			uses4, uses6 = uses4 || a.Is4(), uses6 || a.Is6()
			if why == "" {
				why = f.astray(a)
			}
		}
		if why != "" {
			ns, name, _ := strings.Cut(s.Service, "/")
			of = append(of, kube.Problem{Severity: kube.Warning, Object: kube.Ref{Kind: "Service", Namespace: ns, Name: name}, Message: why})
		}
	}
	forwards := func(family string, off []string, all string) {
		if len(off) > 0 {
			list = append(list, kube.Problem{Severity: kube.Error, Object: kube.Ref{Kind: "Node", Name: f.node}, Message: fmt.Sprintf(
				"clients outside do not reach addresses of load balancers of %s by this node, since its kernel does not forward (%s is 0): set %s=1",
				family, strings.Join(off, ", "), all)})
		}
	}
	if uses4 {
		forwards("IPv4", f.off4, "net.ipv4.ip_forward")
	}
	if uses6 {
		forwards("IPv6", f.off6, "net.ipv6.conf.all.forwarding")
	}
	return slices.Concat(list, of)
}

// astray says why the kernel does not bring the agent what is sent to an address, and what to do; "" if it does.
func (f *facts) astray(a netip.Addr) string {
	way := f.ways[a]
	switch {
	case way.Own:
		return fmt.Sprintf("clients outside do not reach its address %s by node %s, which takes it for one of its own: remove it from the node's interfaces", a, f.node)
	case way.Link == hosttap.Name:
		return ""
	case addressing.Contains(f.ranges, a):
		return fmt.Sprintf("clients outside do not reach its address %s by node %s, whose route through %s is gone, or is no match for another: run 'tapestry host-tap' there again", a, f.node, hosttap.Name)
	}
	return fmt.Sprintf("clients outside do not reach its address %s by node %s, which does not route it into its host TAP: give 'tapestry host-tap' its range with --load-balancer-cidr", a, f.node)
}
