package node

import (
	"net/netip"
	"reflect"
	"sync"

	"tapestry.dev/tapestry/netstack/exit"
)

// exits is how pods leave the cluster, from what the cluster says and from who answers.
type exits struct {
	mu       sync.Mutex // guards what follows
	config   exit.Config
	gateways map[netip.Addr]string // names of nodes; "" for none
	of       *Config               // has the names of nodes; nil until config is in force
}

// setExits brings into force what c says of how pods leave.
func (n *Node) setExits(c *Config) {
	e := &n.exits
	e.mu.Lock()
	defer e.mu.Unlock()
	n.bringExits(c)
}

// SetGateways says by which nodes egress addresses leave: their names, or "" for none. Connections from an address that
// gateways lacks go on as they did, and new ones wait. The caller must not change gateways afterwards.
func (n *Node) SetGateways(gateways map[netip.Addr]string) {
	e := &n.exits
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gateways = gateways
	if e.of != nil {
		n.bringExits(e.of)
	}
}

// bringExits gives the packet path another table if there is anything else in it. The caller holds n.exits.mu.
func (n *Node) bringExits(c *Config) {
	e := &n.exits
	next := exit.Config{Routed: e.config.Routed, Pods: c.Exits, Gateways: map[netip.Addr]exit.Gateway{}}
	for _, a := range c.Exits.Addresses {
		name, settled := e.gateways[a]
		if !settled {
			continue
		}
		g := exit.Gateway{Here: name != "" && name == c.Netstack.Node}
		for i := range c.Netstack.Peers {
			if p := &c.Netstack.Peers[i]; name != "" && p.Name == name {
				g.Peer = p.ID
			}
		}
		next.Gateways[a] = g
	}
	known := e.of != nil && reflect.DeepEqual(e.config, next)
	e.of, e.config = c, next
	if known {
		return
	}
	n.path.SetExits(exit.New(next))
}
