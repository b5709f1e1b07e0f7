package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/services/dns"
)

// Probe sends a DNS query from the stack to cluster DNS, through the pipeline, the flow table and the Table of
// Services, and waits for the answer. Where there is a host TAP, it sends a second query from the host's kernel,
// through the host TAP and the poller that reads all TAPs.
func (n *Node) Probe(ctx context.Context) error {
	c := &n.Config().Netstack
	for _, addr := range c.LocalAddrs {
		if !slices.ContainsFunc(c.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() == addr.Is4() }) {
			continue
		}
		to := netip.AddrPortFrom(addr, dnsPort)
		conn, err := n.path.Stack().Dial(ctx, "udp", netip.AddrPort{}, to)
		if err == nil {
			err = ask(ctx, conn)
		}
		if err != nil {
			return fmt.Errorf("through the stack: %w", err)
		}
		if !n.HasHostTAP(addr) {
			continue
		}
		if conn, err = new(net.Dialer).DialContext(ctx, "udp", to.String()); err == nil {
			err = ask(ctx, conn)
		}
		if err != nil {
			return fmt.Errorf("from the host, which has a host TAP: %w", err)
		}
	}
	return nil
}

func ask(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	return dns.Probe(ctx, conn, "")
}
