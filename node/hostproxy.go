package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/hostproxy"
	"tapestry.dev/tapestry/services/nodeport"
	"tapestry.dev/tapestry/share/descriptors"
)

// makeHostProxy makes what takes processes of the node to the cluster without a host TAP. It listens where ServeProxy
// is told to.
func makeHostProxy(n *Node) (part, error) {
	n.hostProxy = hostproxy.New(hostproxy.Options{
		Dial: n.dialCluster, Lookup: n.lookup, UIDs: n.held.ProxyUIDs, MaxConns: n.held.Descriptors.Of(descriptors.HostProxy), Logger: n.log,
	})
	p := quiet
	p.counters = func() counter.List {
		s := n.hostProxy.Stats()
		return counter.List{
			counter.One(counter.Gauge, "tapestry_host_proxy_connections", "Connections of this node's processes through the host proxy.", s.Conns),
			counter.By(counter.Total, "tapestry_host_proxy_total",
				"Connections to the host proxy: served, refused as the user or the address was not allowed or there were too many, and failed otherwise.",
				"what", map[string]uint64{"served": s.Served, "refused": s.Refused, "failed": s.Failing}),
		}
	}
	return p, nil
}

// ServeProxy serves the host proxy on l until ctx ends, and closes l.
func (n *Node) ServeProxy(ctx context.Context, l net.Listener) error {
	return n.hostProxy.Serve(ctx, l)
}

// lookup returns the addresses of a name of the cluster.
func (n *Node) lookup(name string) []netip.Addr {
	if n.resolver == nil {
		return nil
	}
	return n.resolver.Lookup(name)
}

// dialCluster connects a process of this node to a pod, or to a backend of a Service, as packets from the host TAP get
// there: the Service sees this node as its client. Other addresses are refused.
func (n *Node) dialCluster(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, table := n.cluster.Load(), n.table.Load()
	own := nodeAddr(&c.Config, to.Addr())
	if !own.IsValid() {
		return nil, fmt.Errorf("connect to %s: this node has no address of that family", to)
	}
	const anyPort = 1024 // backends are chosen by the client's port, too
	t := packet.Tuple{
		Src: packet.AddrFrom(own), SrcPort: uint16(anyPort + rand.N(1<<16-anyPort)), Dst: packet.AddrFrom(to.Addr()), DstPort: to.Port(), Proto: packet.TCP,
	}
	choice := table.Pick(&t)
	switch choice.Kind {
	case packet.Picked:
	case packet.NotFrontend:
		if !claimed(&c.Config, to.Addr()) {
			return nil, fmt.Errorf("connect to %s: %w", to, hostproxy.ErrOutside)
		}
		return n.dialAs(ctx, "tcp", netip.AddrPortFrom(own, 0), to)
	default:
		return nil, fmt.Errorf("connect to %s: %w", to, hostproxy.ErrRefused)
	}
	u := n.watch.begin(&t, choice)
	conn, err := n.dialAs(ctx, "tcp", netip.AddrPortFrom(own, 0), choice.To.AddrPort())
	if err != nil {
		u.Refused()
		u.End()
		return nil, err
	}
	u.Answered()
	return &watched{Conn: conn, use: u}, nil
}

// watched is a connection of which somebody wants to know how long it lasts.
type watched struct {
	net.Conn
	use  nodeport.Use
	once sync.Once
}

// Close implements net.Conn.
func (w *watched) Close() error {
	w.once.Do(w.use.End)
	return w.Conn.Close()
}

// CloseWrite ends what is sent.
func (w *watched) CloseWrite() error {
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return w.Close()
}

// SetLinger says how the connection is closed.
func (w *watched) SetLinger(sec int) error {
	if c, ok := w.Conn.(interface{ SetLinger(int) error }); ok {
		return c.SetLinger(sec)
	}
	return nil
}
