package node

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"tapestry.dev/tapestry/netstack"
)

// The lookup of other nodes' addresses finds the same as a search of all nodes, also if two nodes claim one address.
func TestHosts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	addr := func() netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(12))}) }
	for range 200 {
		var c netstack.Config
		for range r.IntN(5) {
			p := netstack.PeerRoute{Encap: r.IntN(2) == 0}
			for range r.IntN(3) {
				p.NodeAddrs = append(p.NodeAddrs, addr())
			}
			c.Peers = append(c.Peers, p)
		}
		a, compiled := addr(), clusterOf(&c)
		host := slices.ContainsFunc(c.Peers, func(p netstack.PeerRoute) bool { return slices.Contains(p.NodeAddrs, a) })
		agent := slices.ContainsFunc(c.Peers, func(p netstack.PeerRoute) bool { return p.Encap && slices.Contains(p.NodeAddrs, a) })
		if compiled.isHost(a) != host || compiled.hosts[a] != agent {
			t.Fatalf("%s among %v: another node's own %v, with an agent %v; want %v, %v", a, c.Peers, compiled.isHost(a), compiled.hosts[a], host, agent)
		}
	}
}
