package netstacktest

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"tapestry.dev/tapestry/netstack/tap"
)

// Outside gives the loopback interface of a test's own network addresses that pods may call outside: of loopback
// addresses no ICMP error may speak. It waits until what is sent to them arrives, since the kernel makes the way to a
// new IPv6 address a moment later.
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
