package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// PathMTU sends UDP datagrams with DF set until the kernel has learned a smaller path MTU from an ICMP error, or the
// timeout has passed. A datagram has size bytes of payload, or fewer if the kernel's path MTU allows no more. PathMTU
// returns the kernel's path MTU in bytes.
func PathMTU(ctx context.Context, to netip.AddrPort, size int, timeout time.Duration) (int, error) {
	c, err := net.Dial("udp", to.String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	level, discover, do, opt := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU
	if to.Addr().Is6() {
		level, discover, do, opt = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU
	}
	known := func() (mtu int, err error) {
		cerr := raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, opt) })
		return mtu, errors.Join(err, cerr)
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, discover, do) })
	if err = errors.Join(err, cerr); err != nil {
		return 0, err
	}
	first, err := known()
	if err != nil {
		return 0, err
	}
	headers := 28
	if to.Addr().Is6() {
		headers = 48
	}
	payload := make([]byte, min(size, first-headers))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(timeout); time.Now().Before(end); {
		if _, err := c.Write(payload); err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return 0, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		if mtu, err := known(); err != nil || mtu < first {
			return mtu, err
		}
	}
	return known()
}
