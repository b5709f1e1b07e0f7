package node

import (
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack"
)

// way is how an endpoint is reached from a host socket.
type way struct {
	// kernel: through a socket of the host, with whatever address the kernel gives it; else through the stack.
	kernel bool
	// as is the address that the endpoint sees. Port 0 is any, the zero AddrPort is the stack's own address.
	as netip.AddrPort
}

// reach says how the connection of a client is carried to an endpoint; the zero client is nobody in particular. These
// are the rules of decision 6 in docs/architecture.md:
//
//   - This node's own address is the kernel's: it would drop a packet from itself that comes by the host TAP as martian.
//   - An endpoint at another node's own address does not see clients: the kernel there would answer them past us, over the
//     network between the nodes, as it would answer a node.
//   - Localhost clients are this node to a pod, which could not answer 127.0.0.1.
//   - Every other client is seen by its own address.
func reach(c *netstack.Config, client, to netip.AddrPort) way {
	switch {
	case slices.Contains(c.NodeAddrs, to.Addr()):
		return way{kernel: true}
	case slices.ContainsFunc(c.Peers, func(p netstack.PeerRoute) bool { return slices.Contains(p.NodeAddrs, to.Addr()) }):
		return way{}
	case client.IsValid() && client.Addr().IsLoopback():
		if own := nodeAddr(c, to.Addr()); own.IsValid() {
			return way{as: netip.AddrPortFrom(own, 0)}
		}
		return way{}
	}
	return way{as: client}
}

// claimed reports whether an address lies in a pod or service range, so that nobody outside may have it.
func claimed(c *netstack.Config, a netip.Addr) bool {
	return addressing.Contains(c.ClusterCIDRs, a) || addressing.Contains(c.ServiceCIDRs, a)
}

// nodeAddr is this node's address of the family of like, or invalid.
func nodeAddr(c *netstack.Config, like netip.Addr) netip.Addr {
	for _, n := range c.NodeAddrs {
		if n.Is4() == like.Is4() {
			return n
		}
	}
	return netip.Addr{}
}
