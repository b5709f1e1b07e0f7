package node

import (
	"net/netip"
	"slices"
	"sync"

	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/nodeport"
)

// makeHostAddrs follows the addresses of the host's interfaces. It returns after the first list has come.
func makeHostAddrs(n *Node) (part, error) {
	n.hostAddrs.Store(new([]netip.Addr))
	if n.held.HostAddrs == nil {
		return quiet, nil
	}
	known := make(chan struct{})
	listed := sync.OnceFunc(func() { close(known) })
	go func() {
		defer listed() // also when no list ever comes
		err := n.held.HostAddrs(n.ctx, func(list []netip.Addr) {
			n.hostAddrs.Store(&list)
			listed()
			n.hostChanged()
		})
		if n.ctx.Err() == nil {
			n.log.Warn("the addresses of the host are not followed: pods come to those that its Node does not name as processes of the host", "err", err)
		}
	}()
	<-known
	return quiet, nil
}

// hostChanged tells the packet path, the node ports and the health checks the host's new addresses.
func (n *Node) hostChanged() {
	n.setting.Lock()
	defer n.setting.Unlock()
	if n.closed || !n.inForce {
		return // the first Set tells the packet path
	}
	if err := n.setPath(n.Config()); err != nil {
		n.log.Error("new addresses of the host were not applied", "err", err)
	}
	n.setNodePorts()
	n.setHealthChecks()
}

// setNodePorts has the host listen on the node ports and hostPorts of the present Table, at the addresses that the host
// has now. Its failures become problems.
func (n *Node) setNodePorts() {
	n.nodePorts.Set(nodeport.PortsAt(n.table.Load(), n.limits()))
}

// setHealthChecks has the host answer the health checks of the present Table where its node ports are. A family that
// the host has not may be switched off there, so nothing listens for all of it. Its failures become problems.
func (n *Node) setHealthChecks() {
	at := slices.DeleteFunc(n.limits().Addrs(), func(a netip.Addr) bool {
		return a.IsUnspecified() && !nodeAddr(&n.Config().Netstack, a).IsValid()
	})
	n.balancers.Set(n.table.Load().HealthChecks(), at)
}

// limits returns the addresses of the host at which node ports are.
func (n *Node) limits() nodeport.Limits {
	c, places := &n.Config().Netstack, &n.held.NodePorts
	addrs := *n.hostAddrs.Load()
	if len(addrs) == 0 {
		addrs = c.NodeAddrs
	}
	limits := nodeport.Limits{}
	for family, like := range map[services.Family]netip.Addr{services.IPv4: netip.IPv4Unspecified(), services.IPv6: netip.IPv6Unspecified()} {
		if !places.Everywhere(like.Is4()) {
			limits[family] = places.Of(like.Is4(), addrs, nodeAddr(c, like))
		}
	}
	return limits
}

// setPath applies c and the host's addresses to the packet path.
func (n *Node) setPath(c *Config) error {
	path := c.Netstack
	path.HostAddrs, path.DenyEgress = *n.hostAddrs.Load(), n.held.DenyEgress
	return n.path.Set(path, n.table.Load(), n.judge())
}
