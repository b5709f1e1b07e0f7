package translate

import (
	"cmp"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
)

// joinNodes returns what the packet path, the mesh and the Services have to know of the nodes. all holds every node,
// after settleNodes.
func joinNodes(all []node, named Ranges, o Options, say *kube.Report) *nodes {
	pods := endpointsOutside(all, named.Pods, say)
	r := &nodes{self: node{name: o.Node}, netstack: netstack.Config{Node: o.Node, MTU: mtu(all, o, say)}, services: named.Services}
	r.netstack.ClusterCIDRs = slices.Clone(named.Pods)
	var own []netip.Addr // this node's
	if i := slices.IndexFunc(all, func(n node) bool { return n.name == o.Node }); i >= 0 {
		own = all[i].addrs
	}
	found := false
	for i := range all {
		n := &all[i]
		r.netstack.ClusterCIDRs = append(r.netstack.ClusterCIDRs, n.podCIDRs...)
		if n.name == o.Node {
			found, r.self = true, *n
			r.netstack.PodCIDRs, r.netstack.NodeAddrs = n.podCIDRs, n.addrs
			continue
		}
		r.netstack.Peers = append(r.netstack.Peers, n.route())
		r.overlay.Peers = append(r.overlay.Peers, n.peer(n.otherEndpoints(own, pods)))
	}
	if !found && o.Node != "" {
		say.Errorf(kube.Ref{Kind: "Node", Name: o.Node}, "", "there is no such Node, and this agent runs it: add the object or start the agent with another name")
	}
	r.netstack.ClusterCIDRs = addressing.Outermost(r.netstack.ClusterCIDRs)
	r.addrs, r.names = answering(all)
	r.portless = withoutNodePorts(all, o.NodePorts)
	return r
}

// usableRanges returns the ranges of Options without those that hold an address of this node: there is more in them
// than pods or Services.
func usableRanges(parsed []*node, o Options, say *kube.Report) (named Ranges) {
	if o.Ranges == nil {
		return named
	}
	self := &node{ref: kube.Ref{Kind: "Node", Name: o.Node}}
	if i := slices.IndexFunc(parsed, func(n *node) bool { return n.name == o.Node }); i >= 0 {
		self = parsed[i]
	}
	without := func(list []netip.Prefix, what, flag string) (kept []netip.Prefix) {
		for _, p := range list {
			if i := slices.IndexFunc(self.addrs, p.Contains); i >= 0 {
				say.Warnf(self.ref, self.addrFields[i], "%s lies in the range of %s %s (%s), so that addresses there that nobody has are taken for outside: name a range in which no node lies",
					self.addrs[i], what, p, flag)
				continue
			}
			kept = append(kept, p)
		}
		return kept
	}
	return Ranges{without(o.Ranges.Pods, "pods", "--cluster-cidr"), without(o.Ranges.Services, "Services", "--service-cidr")}
}

// endpointsOutside takes from nodes an announced endpoint that lies in a range of pods. The host would route datagrams
// for it into the tunnel that they come from. It returns these ranges.
func endpointsOutside(all []node, named []netip.Prefix, say *kube.Report) (pods []netip.Prefix) {
	pods = slices.Clone(named)
	for i := range all {
		if !all[i].stock { // a stock peer may stand in front of a network in which endpoints lie
			pods = append(pods, all[i].podCIDRs...)
		}
	}
	pods = addressing.Outermost(pods)
	for i := range all {
		n := &all[i]
		in, inPods := containing(pods, n.endpoint.Addr())
		if inPods && n.endpoint != n.defaultEndpoint() { // of an address in such a range its own field tells
			say.Errorf(n.ref, annotation(kube.EndpointAnnotation), "%s lies in the range of pods %s, and is left out: a node's address must lie outside of the cluster's ranges", n.endpoint, in)
			n.endpoint = n.defaultEndpoint()
			_, inPods = containing(pods, n.endpoint.Addr())
		}
		if inPods {
			n.endpoint = netip.AddrPort{}
		}
	}
	return pods
}

// answering returns the addresses of the nodes that answer NodePorts, sorted, and the names of their nodes by the
// same index.
func answering(all []node) (addrs []netip.Addr, names []string) {
	type nodeAddr struct {
		addr netip.Addr
		name string
	}
	var list []nodeAddr
	for i := range all {
		for _, a := range all[i].addrs {
			if !all[i].stock { // stock WireGuard does not answer NodePorts
				list = append(list, nodeAddr{a, all[i].name})
			}
		}
	}
	slices.SortFunc(list, func(a, b nodeAddr) int { return a.addr.Compare(b.addr) })
	for _, a := range list {
		addrs, names = append(addrs, a.addr), append(names, a.name)
	}
	return addrs, names
}

// withoutNodePorts returns the addresses of nodes that are not among places, sorted.
func withoutNodePorts(all []node, places *services.Places) (list []netip.Addr) {
	if places == nil {
		return nil
	}
	for i := range all {
		for _, a := range all[i].addrs {
			first := all[i].addrs[slices.IndexFunc(all[i].addrs, func(b netip.Addr) bool { return a.Is4() == b.Is4() })]
			if !places.Serves(a, first) {
				list = append(list, a)
			}
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// id returns the number by which the other nodes know n.
func (n *node) id() uint64 { return addressing.Node{Name: n.name}.ID() }

func (n *node) route() netstack.PeerRoute {
	return netstack.PeerRoute{
		ID: n.id(), Name: n.name, PodCIDRs: n.podCIDRs, NodeAddrs: n.addrs, Encap: !n.stock, SendsPartial: !n.stock,
		Unready: n.unready,
	}
}

// peer returns n as a peer that listens at n.endpoint and at others.
func (n *node) peer(others []netip.AddrPort) overlay.Peer {
	p := overlay.Peer{
		ID: n.id(), Name: n.name, PublicKey: n.key, Endpoint: n.endpoint, Others: others, Tapestry: !n.stock, TakesPartial: n.partial,
	}
	for _, cidr := range n.podCIDRs {
		p.Prefixes = append(p.Prefixes, cidr)
		if !n.stock {
			p.StackAddrs = append(p.StackAddrs, addressing.Stack(cidr))
		}
	}
	for _, a := range n.addrs {
		p.Prefixes = append(p.Prefixes, netip.PrefixFrom(a, a.BitLen()))
	}
	return p
}

// otherEndpoints returns where else than at n.endpoint the WireGuard of n listens, as far as a node with the addresses
// own can use it: outside of pods, and first at addresses of the other family, since those of one family are often out
// of reach all at once. WireGuard listens on all addresses of its node, at one port.
func (n *node) otherEndpoints(own []netip.Addr, pods []netip.Prefix) (list []netip.AddrPort) {
	if !n.endpoint.IsValid() || n.stock {
		return nil
	}
	usable := func(a netip.Addr) bool {
		_, inPods := containing(pods, a)
		return a != n.endpoint.Addr() && !inPods && slices.ContainsFunc(own, func(o netip.Addr) bool { return o.Is4() == a.Is4() })
	}
	for _, sameFamily := range [...]bool{false, true} {
		for _, a := range n.addrs {
			if usable(a) && sameFamily == (a.Is4() == n.endpoint.Addr().Is4()) {
				list = append(list, netip.AddrPortFrom(a, n.endpoint.Port()))
			}
		}
	}
	return list
}

// mtu returns the pods' MTU in bytes. It depends on nothing that differs between nodes, so it is the same on all of
// them.
func mtu(all []node, o Options, say *kube.Report) int {
	tunnel6, only6, has6 := false, false, false
	for i := range all {
		n := &all[i]
		tunnel6 = tunnel6 || n.endpoint.IsValid() && n.endpoint.Addr().Is6()
		only6 = only6 || onlyIPv6(n.podCIDRs)
		has6 = has6 || hasIPv6(n.podCIDRs)
	}
	underlay, overhead := cmp.Or(o.UnderlayMTU, addressing.DefaultUnderlayMTU), podOverhead(tunnel6, only6)
	if has6 && underlay-overhead < addressing.MinMTU && o.Node != "" {
		say.Warnf(kube.Ref{Kind: "Node", Name: o.Node}, "", "an underlay MTU of %d leaves %d for pods, and IPv6 needs %d: its packets between nodes go in pieces, which costs throughput; raise the MTU of the network between the nodes to %d",
			underlay, underlay-overhead, addressing.MinMTU, addressing.MinMTU+overhead)
	}
	return leastMTU(underlay-overhead, has6)
}

// PodMTU returns the MTU in bytes of pods on an underlay of that MTU (0 for addressing.DefaultUnderlayMTU), when all
// nodes have addresses and ranges like these. Without addrs, the nodes' addresses are assumed to be of the ranges'
// families.
func PodMTU(underlay int, addrs []netip.Addr, podCIDRs []netip.Prefix) int {
	only6 := onlyIPv6(podCIDRs)
	tunnel6 := len(addrs) == 0 && only6 || len(addrs) > 0 && addrs[0].Is6()
	return leastMTU(cmp.Or(underlay, addressing.DefaultUnderlayMTU)-podOverhead(tunnel6, only6), hasIPv6(podCIDRs))
}

// leastMTU returns the MTU of pods for whom the underlay has room for that many bytes. A kernel has no IPv6 on an
// interface with less than IPv6's least MTU, so pods with IPv6 get that much, and the tunnel carries it in pieces. What
// is too much for IPv4 the pods learn by ICMP.
func leastMTU(room int, has6 bool) int {
	if has6 {
		return max(room, addressing.MinMTU)
	}
	return room
}

func hasIPv6(podCIDRs []netip.Prefix) bool {
	return slices.ContainsFunc(podCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

func onlyIPv6(podCIDRs []netip.Prefix) bool {
	return len(podCIDRs) > 0 && !slices.ContainsFunc(podCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() })
}

// podOverhead returns the number of bytes by which the pods' MTU is smaller than the underlay's. A tunnel over IPv6
// takes more than one over IPv4, and so does the encapsulation of clients where stacks have IPv6 addresses only.
func podOverhead(tunnel6, only6 bool) int {
	return addressing.Tunnel(tunnel6) + addressing.Encap(only6)
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
