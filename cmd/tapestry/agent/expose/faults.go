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
	// exposed are the Services with addresses for clients outside. egress are the addresses of which the node can be
	// the gateway. ways is the kernel's way to each of all these, and to the first address of each range in routed.
	exposed []services.Exposed
	egress  []gateway
	ways    map[netip.Addr]tap.Way
	// off4 and off6 are the settings because of which the kernel does not forward, by family.
	off4, off6 []string
}

// gateway is an egress address of which the node can be the gateway.
type gateway struct {
	addr netip.Addr
	of   string // the EgressAddress
	bare bool   // the node has no host TAP with an address of the family
}

// faults says what the kernel does not forward, the node's own faults first. Each Service has one problem at most.
func faults(f *facts) (list []kube.Problem) {
	lb4, lb6, services := f.unreached()
	out4, out6, egress4, egress6 := false, false, false, false
	for _, r := range f.routed {
		out4, out6 = out4 || r.Addr().Is4(), out6 || r.Addr().Is6()
	}
	for _, g := range f.egress {
		egress4, egress6 = egress4 || g.addr.Is4() && !g.bare, egress6 || g.addr.Is6() && !g.bare
	}
	node := func(format string, args ...any) {
		list = append(list, kube.Problem{Severity: kube.Error, Object: kube.Ref{Kind: "Node", Name: f.node}, Message: fmt.Sprintf(format, args...)})
	}
	for _, family := range []struct {
		name            string
		in, out, egress bool
		off             []string
		settings        string
	}{{"IPv4", lb4, out4, egress4, f.off4, "net.ipv4.ip_forward"}, {"IPv6", lb6, out6, egress6, f.off6, "net.ipv6.conf.all.forwarding"}} {
		because := fmt.Sprintf("since its kernel does not forward (%s is 0): set %s=1", strings.Join(family.off, ", "), family.settings)
		if family.in && len(family.off) > 0 {
			node("clients outside do not reach addresses of load balancers of %s by this node, %s", family.name, because)
		}
		if family.out && len(family.off) > 0 {
			node("pods of this node do not reach the ranges of %s that are not masqueraded, %s", family.name, because)
		}
		if family.egress && len(family.off) > 0 {
			node("pods do not reach anything outside from egress addresses of %s by this node, which can be their gateway, %s", family.name, because)
		}
	}
	for _, r := range f.routed {
		if f.ways[r.Addr()].Link == hosttap.Name {
			node("pods of this node do not reach %s, which is not masqueraded (--non-masquerade-cidr): its kernel routes %s back into %s; leave out what is of the cluster or of load balancers", r, r.Addr(), hosttap.Name)
		}
	}
	return slices.Concat(list, services, f.blocked())
}

// blocked returns a problem for each egress address from which pods would reach nothing if the node were its gateway.
func (f *facts) blocked() (list []kube.Problem) {
	for _, g := range f.egress {
		why := f.astray("answers from outside do not reach its address", g.addr)
		if g.bare {
			why = fmt.Sprintf("nothing leaves from its address %s by node %s, which can be its gateway, since that has no host TAP with an address of the family: run 'tapestry host-tap' there with --load-balancer-cidr, or exclude the node by spec.nodeSelector", g.addr, f.node)
		}
		if why != "" {
			list = append(list, kube.Problem{Severity: kube.Warning, Object: kube.Ref{Kind: "EgressAddress", Name: g.of}, Message: why})
		}
	}
	return list
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
				why = f.astray("clients outside do not reach its address", a)
			}
		}
		if why != "" {
			ns, name, _ := strings.Cut(s.Service, "/")
			of = append(of, kube.Problem{Severity: kube.Warning, Object: kube.Ref{Kind: "Service", Namespace: ns, Name: name}, Message: why})
		}
	}
	return uses4, uses6, of
}

// astray says why the kernel does not bring the agent what is sent to an address, and what to do; "" if it does. what
// says what follows.
func (f *facts) astray(what string, a netip.Addr) string {
	way := f.ways[a]
	switch {
	case way.Own:
		return fmt.Sprintf("%s %s by node %s, which takes it for one of its own: remove it from the node's interfaces", what, a, f.node)
	case way.Link == hosttap.Name:
		return ""
	case addressing.Contains(f.ranges, a):
		return fmt.Sprintf("%s %s by node %s, whose route through %s is gone, or is no match for another: run 'tapestry host-tap' there again", what, a, f.node, hosttap.Name)
	}
	return fmt.Sprintf("%s %s by node %s, which does not route it into its host TAP: give 'tapestry host-tap' its range with --load-balancer-cidr", what, a, f.node)
}
