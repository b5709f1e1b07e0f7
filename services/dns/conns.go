package dns

import (
	"net"
	"net/netip"

	"tapestry.dev/tapestry/share"
)

// conns shares out TCP connections among clients: when there are as many as may be, the client with the most loses the
// one on which nothing has been said for the longest time.
type conns struct {
	*share.Limit[netip.Addr, net.Conn]
	owner func(netip.Addr) netip.Addr // Options.Owner
}

func newConns(total int, owner func(netip.Addr) netip.Addr) conns {
	return conns{share.New[netip.Addr, net.Conn](share.Options[netip.Addr]{Total: total}), owner}
}

// over has l give only connections that have a share.
func (s conns) over(l net.Listener) net.Listener { return fairListener{l, s} }

type fairListener struct {
	net.Listener
	conns conns
}

// Accept implements net.Listener.
func (l fairListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		held := &fairConn{Conn: c, conns: l.conns}
		held.claim.Value = c
		lost, ok := l.conns.Acquire(&held.claim, l.conns.owner(clientOf(c.RemoteAddr())))
		if lost != nil {
			lost.Value.Close()
		}
		if ok {
			return held, nil
		}
		c.Close()
	}
}

// fairConn is a connection with its share.
type fairConn struct {
	net.Conn
	conns conns
	claim share.Claim[netip.Addr, net.Conn]
}

// Read implements net.Conn.
func (c *fairConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.conns.Touch(&c.claim)
	}
	return n, err
}

// Write implements net.Conn.
func (c *fairConn) Write(b []byte) (int, error) {
	c.conns.Touch(&c.claim)
	return c.Conn.Write(b)
}

// Close implements net.Conn.
func (c *fairConn) Close() error {
	c.conns.Release(&c.claim)
	return c.Conn.Close()
}

// clientOf is the address of a client.
func clientOf(a net.Addr) netip.Addr {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return a.AddrPort().Addr().Unmap()
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{} // whoever has no address shares with all such
	}
	return ap.Addr().Unmap()
}
