package node

import (
	"net"
	"net/netip"
	"slices"
	"sync"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

// A namespace's user writes EndpointSlices, and may name an address at which this node itself takes connections for
// Services. Each connection would then open the next one without end, and a datagram would go round for ever.

// tail returns why a connection from a host socket must not go to an endpoint, or "" when it may. host lists the
// addresses of the host's interfaces.
//
//   - A Service address is translated only for pods, and only once. Otherwise clients of a NodePort or Ingress would
//     reach a Service past its own rules for clients.
//   - A load balancer's address leads to the node ports of its Service, and at the one of a node Tapestry itself takes
//     its connections.
//   - Outside of the cluster, nothing is dialled for who comes by a NodePort or Ingress, and the packet path would drop
//     it. A router, load balancer or proxy there may lead back to a node, and makes the connection anew, so no mark of
//     ours would survive and nobody could tell a round from a client.
//   - At a node port of a node Tapestry itself takes connections, also at the address of the node's host TAP.
func tail(c *cluster, host []netip.Addr, t *services.Table, network string, to netip.AddrPort) string {
	proto := packet.TCP
	if network == "udp" {
		proto = packet.UDP
	}
	own := isOwn(&c.Config, host, to.Addr())
	onHost := own || c.isHost(to.Addr())
	switch {
	case addressing.Contains(c.ServiceCIDRs, to.Addr()):
		return "it lies in a service range, and nothing is translated twice"
	case t.HasFrontend(to, proto):
		return "it is an address of a Service, and nothing is translated twice"
	case (own || c.hosts[to.Addr()] || c.taps[to.Addr()]) && t.HasNodePort(to.Addr().Is4(), to.Port(), proto):
		return "it is a node port, to which Tapestry itself listens"
	case !onHost && !claimed(&c.Config, to.Addr()) && !addressing.Contains(c.PodCIDRs, to.Addr()):
		return "it lies outside of the cluster, where nothing is dialled for clients of NodePorts and Ingress"
	}
	return ""
}

// isOwn reports whether an address is this host's, by any of its interfaces.
func isOwn(c *netstack.Config, host []netip.Addr, a netip.Addr) bool {
	return slices.Contains(c.NodeAddrs, a) || slices.Contains(host, a) ||
		slices.ContainsFunc(c.PodCIDRs, func(p netip.Prefix) bool { return addressing.Host(p) == a })
}

// listeners are the addresses on which a Node serves Ingress.
type listeners struct {
	mu   sync.Mutex
	list []netip.AddrPort // guarded by mu; the unspecified address stands for all addresses of the host
}

// add puts l into the list, until the func that it returns is called.
func (ls *listeners) add(l net.Listener) (remove func()) {
	tcp, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return func() {} // it has no address of a host
	}
	at := tcp.AddrPort()
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.list = append(ls.list, at)
	return func() {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		if i := slices.Index(ls.list, at); i >= 0 {
			ls.list = slices.Delete(ls.list, i, i+1)
		}
	}
}

// at reports whether one of the listeners takes connections to an address of the host.
func (ls *listeners) at(to netip.AddrPort) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return slices.ContainsFunc(ls.list, func(l netip.AddrPort) bool {
		return l.Port() == to.Port() && (l.Addr() == to.Addr() || l.Addr().IsUnspecified())
	})
}
