package netstacktest

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"tapestry.dev/tapestry/netstack/tap"
)

// Outside adds addresses that pods may call as the outside to the loopback interface of a test's own network. Loopback
// addresses would not do, because ICMP errors must not come from them. Outside waits until packets to the addresses
// arrive, because the kernel makes the route to a new IPv6 address a moment later.
func Outside(addrs ...netip.Addr) error {
	for _, a := range addrs {
		if err := tap.AddAddr(nil, "lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
		if err := hearItself(a); err != nil {
			return fmt.Errorf("send to %s: %w", a, err)
		}
	}
	return nil
}

func hearItself(a netip.Addr) error {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return err
	}
	defer c.Close()
	for range 1000 {
		_, _ = c.WriteTo([]byte("?"), c.LocalAddr())
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, _, err = c.ReadFrom(make([]byte, 1)); err == nil {
			break
		}
	}
	return err
}
