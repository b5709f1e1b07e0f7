// Package conns shares out the connections of a listener among its clients. When there are as many as allowed, the
// client with the most loses the connection that was silent for the longest time (package share). So silent connections
// shut nobody out.
package conns

import (
	"errors"
	"net"
	"net/netip"

	"tapestry.dev/tapestry/share"
)

// Conns are the connections of one or several listeners together. Its Limit is for callers who count them.
type Conns struct {
	*share.Limit[netip.Addr, net.Conn]
	owner func(netip.Addr) netip.Addr
}

// New returns Conns that allow total connections, at least 1. owner returns the address to which a client's connections
// are charged; nil means the client's own.
func New(total int, owner func(netip.Addr) netip.Addr) Conns {
	if owner == nil {
		owner = func(a netip.Addr) netip.Addr { return a }
	}
	return Conns{share.New[netip.Addr, net.Conn](share.Options[netip.Addr]{Total: total}), owner}
}

// Over returns a listener whose connections are those of l that got a share.
func (s Conns) Over(l net.Listener) net.Listener { return listener{l, s} }

type listener struct {
	net.Listener
	conns Conns
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		held := &conn{Conn: c, conns: l.conns}
		held.claim.Value = c
		lost, ok := l.conns.Acquire(&held.claim, l.conns.owner(ClientOf(c.RemoteAddr())))
		if lost != nil {
			lost.Value.Close()
		}
		if ok {
			return held, nil
		}
		c.Close()
	}
}

// conn is a connection with its share.
type conn struct {
	net.Conn
	conns Conns
	claim share.Claim[netip.Addr, net.Conn]
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.conns.Touch(&c.claim)
	}
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	c.conns.Touch(&c.claim)
	return c.Conn.Write(b)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.conns.Release(&c.claim)
	return c.Conn.Close()
}

// CloseWrite says that nothing more is written, if c can do that.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ClientOf returns the IP address of a client. It is the zero address when a has none.
func ClientOf(a net.Addr) netip.Addr {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return a.AddrPort().Addr().Unmap()
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{} // all clients without an address share one owner
	}
	return ap.Addr().Unmap()
}
