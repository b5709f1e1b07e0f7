package node

import (
	"net/netip"
	"sync"
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

// hostChanged tells the packet path the host's new addresses.
func (n *Node) hostChanged() {
	n.setting.Lock()
	defer n.setting.Unlock()
	if n.closed || !n.inForce {
		return // the first Set tells the packet path
	}
	if err := n.setPath(n.Config()); err != nil {
		n.log.Error("new addresses of the host were not applied", "err", err)
	}
}

// setPath applies c and the host's addresses to the packet path.
func (n *Node) setPath(c *Config) error {
	path := c.Netstack
	path.HostAddrs, path.DenyEgress = *n.hostAddrs.Load(), n.held.DenyEgress
	return n.path.Set(path, n.table.Load(), nil)
}
