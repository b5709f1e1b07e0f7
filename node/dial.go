package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"tapestry.dev/tapestry/netstack/clientrelay"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/services/nodeport"
)

// dialer opens a connection of the host.
type dialer func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)

// dial connects Ingress to an endpoint, which sees no particular client.
func (n *Node) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	if isOwn(&n.Config().Netstack, *n.hostAddrs.Load(), to.Addr()) && n.ingressAt.at(to) {
		return nil, fmt.Errorf("connect to endpoint %s: it is where this node serves Ingress itself", to)
	}
	return n.dialBy(ctx, network, netip.AddrPort{}, to, n.hostBackends.dial)
}

// dialAs connects to an endpoint that sees client, by the rules of reach and tail.
func (n *Node) dialAs(ctx context.Context, network string, client, to netip.AddrPort) (net.Conn, error) {
	return n.dialBy(ctx, network, client, to, func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, to.String())
	})
}

// dialBy is dialAs with the way to an endpoint on this host.
func (n *Node) dialBy(ctx context.Context, network string, client, to netip.AddrPort, onHost dialer) (net.Conn, error) {
	if why := tail(n.cluster.Load(), *n.hostAddrs.Load(), n.table.Load(), network, to); why != "" {
		return nil, fmt.Errorf("connect to endpoint %s: %s", to, why)
	}
	w := reach(n.cluster.Load(), client, to)
	if w.kernel {
		return onHost(ctx, network, to)
	}
	return n.path.Stack().Dial(ctx, network, w.as, to)
}

// join is nodeport.Options.Join: it carries a client's connection to an endpoint without the stack, by the rules of
// reach and tail.
func (n *Node) join(ctx context.Context, conn *net.TCPConn, client, to netip.AddrPort, answered func(bool)) (left *net.TCPConn, refused bool) {
	as, ok := n.joins(client, to)
	if !ok {
		return conn, false
	}
	err := n.path.Stack().Join(ctx, conn, as, to, answered)
	if refusal := (*tcprelay.RefusedError)(nil); errors.As(err, &refusal) {
		return refusal.Client, true
	}
	if err != nil {
		n.log.Debug("a connection goes through the stack", "err", err)
		return conn, false
	}
	return nil, false
}

// adopt is nodeport.Options.Adopt, by the same rules as join.
func (n *Node) adopt(fd int, client, to netip.AddrPort, answered func(bool), ended func(left *net.TCPConn)) bool {
	as, ok := n.joins(client, to)
	if !ok {
		return false
	}
	err := n.path.Stack().Adopt(fd, as, to, tcprelay.Told{Answered: answered, Ended: ended})
	if err != nil {
		n.log.Debug("a connection is not adopted", "err", err)
	}
	return err == nil
}

// joins returns as whom a client is joined to an endpoint, and false if it is not.
func (n *Node) joins(client, to netip.AddrPort) (as netip.AddrPort, ok bool) {
	c := n.cluster.Load()
	if !n.path.Relayed(to.Addr()) || tail(c, *n.hostAddrs.Load(), n.table.Load(), "tcp", to) != "" {
		return as, false
	}
	w := reach(c, client, to)
	return w.as, !w.kernel
}

// accept is nodeport.Options.Accept: connections are accepted where TAPs are read.
func (n *Node) accept(l net.Listener, each func(fd int, client netip.AddrPort)) nodeport.Acceptor {
	a, err := n.path.Stack().Accept(l, each)
	if err != nil {
		n.log.Debug("connections are accepted by a goroutine", "err", err)
		return nil
	}
	return a
}

// door is a UDP socket of the host through which clients reach endpoints, by the rules of reach and tail.
type door struct {
	*clientrelay.Door
	n *Node
}

// openDoor is nodeport.Options.Door.
func (n *Node) openDoor(conn *net.UDPConn) (nodeport.Door, error) {
	d, err := n.path.Stack().Door(conn)
	if err != nil {
		return nil, err
	}
	return door{d, n}, nil
}

// Exchange implements nodeport.Door.
func (d door) Exchange(client netip.AddrPort, local netip.Addr, seen, to netip.AddrPort, heard func(error)) (io.Closer, error) {
	n := d.n
	w := reach(n.cluster.Load(), seen, to)
	if w.kernel {
		return nil, errors.ErrUnsupported
	}
	if why := tail(n.cluster.Load(), *n.hostAddrs.Load(), n.table.Load(), "udp", to); why != "" {
		return nil, fmt.Errorf("connect to endpoint %s: %s", to, why)
	}
	return d.Door.Exchange(client, local, w.as, to, heard)
}

// ServeHTTP serves Ingress on l until ctx ends, and closes l.
func (n *Node) ServeHTTP(ctx context.Context, l net.Listener) error {
	defer n.ingressAt.add(l)()
	return n.ingress.ServeHTTP(ctx, l)
}

// ServeHTTPS is ServeHTTP with TLS in front.
func (n *Node) ServeHTTPS(ctx context.Context, l net.Listener) error {
	defer n.ingressAt.add(l)()
	return n.ingress.ServeHTTPS(ctx, l)
}
