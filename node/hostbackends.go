package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"tapestry.dev/tapestry/share"
)

// hostBackends are the connections of Ingress to endpoints on this host, each of which takes a descriptor, other than
// connections to pods. Who causes them is not known, since Ingress keeps connections for whoever comes next. So they
// are shared out among the endpoints: one endpoint leaves to others as many as it has.
type hostBackends struct {
	limit *share.Limit[netip.AddrPort, struct{}]
}

func newHostBackends(most int) hostBackends {
	return hostBackends{share.New[netip.AddrPort, struct{}](share.Options[netip.AddrPort]{Total: most, Keep: true})}
}

var errTooManyOnHost = errors.New("there are too many connections to endpoints on the host")

// dial connects to an endpoint on this host.
func (h hostBackends) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	c := &hostConn{of: h}
	if _, ok := h.limit.Acquire(&c.claim, to); !ok {
		return nil, fmt.Errorf("connect to endpoint %s: %w", to, errTooManyOnHost)
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, to.String())
	if err != nil {
		h.limit.Release(&c.claim)
		return nil, err
	}
	c.TCPConn = conn.(*net.TCPConn) // Ingress dials nothing but TCP
	return c, nil
}

// hostConn is a connection that gives its unit back when it is closed.
type hostConn struct {
	*net.TCPConn
	of    hostBackends
	claim share.Claim[netip.AddrPort, struct{}]
}

// Close implements net.Conn.
func (c *hostConn) Close() error {
	err := c.TCPConn.Close()
	c.of.limit.Release(&c.claim) // a second time it does nothing
	return err
}
