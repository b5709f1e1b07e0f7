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
	// ranges are those that 'tapestry host-tap' routed into the host TAP.
	ranges []netip.Prefix
	// routed are the ranges that pods reach from their own addresses by the host TAP.
	routed []netip.Prefix
	// exposed are the Services with addresses for clients outside, and ways is the kernel's way to each of the
	// addresses, and to the first one of each range in routed.
	exposed []services.Exposed
	ways    map[netip.Addr]tap.Way
	// off4 and off6 are the settings because of which the kernel does not forward, by family.
	off4, off6 []string
}

// faults says what the kernel does not forward, the node's own faults first. Each Service has one problem at most.
func faults(f *facts) (list []kube.Problem) {
	lb4, lb6, services := f.unreached()
	out4, out6 := false, false
	for _, r := range f.routed {
		out4, out6 = out4 || r.Addr().Is4(), out6 || r.Addr().Is6()
	}
	node := func(format string, args ...any) {
		list = append(list, kube.Problem{Severity: kube.Error, Object: kube.Ref{Kind: "Node", Name: f.node}, Message: fmt.Sprintf(format, args...)})
	}
	for _, family := range []struct {
		name     string
		in, out  bool
		off      []string
		settings string
	}{{"IPv4", lb4, out4, f.off4, "net.ipv4.ip_forward"}, {"IPv6", lb6, out6, f.off6, "net.ipv6.conf.all.forwarding"}} {
		because := fmt.Sprintf("since its kernel does not forward (%s is 0): set %s=1", strings.Join(family.off, ", "), family.settings)
		if family.in && len(family.off) > 0 {
			node("clients outside do not reach addresses of load balancers of %s by this node, %s", family.name, because)
		}
		if family.out && len(family.off) > 0 {
			node("pods of this node do not reach the ranges of %s that are not masqueraded, %s", family.name, because)
		}
	}
	for _, r := range f.routed {
		if f.ways[r.Addr()].Link == hosttap.Name {
			node("pods of this node do not reach %s, which is not masqueraded (--non-masquerade-cidr): its kernel routes %s back into %s; leave out what is of the cluster or of load balancers", r, r.Addr(), hosttap.Name)
		}
	}
	return slices.Concat(list, services)
}

// unreached returns a problem for each Service that clients outside do not reach, and of which families there are any.
func (f *facts) unreached() (uses4, uses6 bool, of []kube.Problem) {
	if len(f.ranges) == 0 {
		return false, false, nil
	}
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
	return uses4, uses6, of
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
