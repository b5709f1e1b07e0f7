package node

import (
	"net/netip"
	"sync"
)

// makeHostAddrs follows the addresses of the host's interfaces. The first list is there when it returns.
func makeHostAddrs(n *Node) (part, error) {
	n.hostAddrs.Store(new([]netip.Addr))
	if n.held.HostAddrs == nil {
		return quiet, nil
	}
	known := make(chan struct{})
	listed := sync.OnceFunc(func() { close(known) })
	go func() {
		defer listed() // or there is none
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

// hostChanged has the packet path know of the host's addresses.
func (n *Node) hostChanged() {
	n.setting.Lock()
	defer n.setting.Unlock()
	if n.closed || !n.inForce {
		return // Set will tell it
	}
	if err := n.setPath(n.Config()); err != nil {
		n.log.Error("new addresses of the host were not applied", "err", err)
	}
}

// setPath brings the packet path to c, and to what the host is.
func (n *Node) setPath(c *Config) error {
	path := c.Netstack
	path.HostAddrs, path.DenyEgress = *n.hostAddrs.Load(), n.held.DenyEgress
	return n.path.Set(path, n.table.Load(), nil)
}
