package node

import (
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack"
)

// way is how an endpoint is reached from a host socket.
type way struct {
	// kernel is set when the way is a socket of the host, with an address that the kernel chooses. Otherwise it is the
	// stack.
	kernel bool
	// as is the client address that the endpoint sees. Port 0 means any port, the zero AddrPort the stack's own
	// address.
	as netip.AddrPort
}

// cluster is the Config of the packet path, with what is looked up in it for each connection from a host socket.
type cluster struct {
	netstack.Config
	hosts map[netip.Addr]bool // the own addresses of other nodes; true for a node that has an agent
	taps  map[netip.Addr]bool // the addresses of the host TAPs of other nodes that have an agent
}

func clusterOf(c *netstack.Config) *cluster {
	hosts, taps := make(map[netip.Addr]bool, len(c.Peers)), make(map[netip.Addr]bool, len(c.Peers))
	for i := range c.Peers {
		for _, p := range c.Peers[i].PodCIDRs {
			if c.Peers[i].Encap {
				taps[addressing.Host(p)] = true
			}
		}
		for _, a := range c.Peers[i].NodeAddrs {
			hosts[a] = hosts[a] || c.Peers[i].Encap
		}
	}
	return &cluster{*c, hosts, taps}
}

// isHost reports whether an address is another node's own.
func (c *cluster) isHost(a netip.Addr) bool {
	_, found := c.hosts[a]
	return found
}

// reach decides how a client's connection is carried to an endpoint. The zero client means no particular one. The rules
// are those of decision 6 in docs/architecture.md:
//
//   - This node's own address is reached through the kernel, which drops packets from its own address that come by the
//     host TAP as martians.
//   - An endpoint at another node's own address does not see the client's address. The kernel there would answer
//     the client directly over the underlay, past the tunnel.
//   - A pod sees a client on localhost as this node, because it could not answer 127.0.0.1.
//   - An endpoint sees every other client by the client's own address.
func reach(c *cluster, client, to netip.AddrPort) way {
	switch {
	case slices.Contains(c.NodeAddrs, to.Addr()):
		return way{kernel: true}
	case c.isHost(to.Addr()):
		return way{}
	case client.IsValid() && client.Addr().IsLoopback():
		if own := nodeAddr(&c.Config, to.Addr()); own.IsValid() {
			return way{as: netip.AddrPortFrom(own, 0)}
		}
		return way{}
	}
	return way{as: client}
}

// claimed reports whether an address lies in a pod or service range. No client outside may have such an address.
func claimed(c *netstack.Config, a netip.Addr) bool {
	return addressing.Contains(c.ClusterCIDRs, a) || addressing.Contains(c.ServiceCIDRs, a)
}

// nodeAddr returns this node's address of like's family, or the zero Addr.
func nodeAddr(c *netstack.Config, like netip.Addr) netip.Addr {
	for _, n := range c.NodeAddrs {
		if n.Is4() == like.Is4() {
			return n
		}
	}
	return netip.Addr{}
}
