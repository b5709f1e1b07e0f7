package netstacktest_test

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/tap"
)

// pingSocket opens a ping socket in a pod, which receives ICMP errors.
func pingSocket(t *testing.T, ns *tap.Namespace, to netip.Addr) (fd int, sa unix.Sockaddr) {
	t.Helper()
	family, proto, level, opt := unix.AF_INET6, unix.IPPROTO_ICMPV6, unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	sa = &unix.SockaddrInet6{Addr: to.As16()}
	if to.Is4() {
		family, proto, level, opt = unix.AF_INET, unix.IPPROTO_ICMP, unix.IPPROTO_IP, unix.IP_RECVERR
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	}
	if err := ns.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, level, opt, 1); err != nil {
		t.Fatal(err)
	}
	return fd, sa
}

// Pings of all sizes are answered, also those that the pod's kernel sends in fragments.
func TestEgressPing(t *testing.T) {
	_, ns := egress(t, 0)
	for _, where := range []*tap.Namespace{nil, ns} {
		if err := tap.EnableUnprivilegedPing(where); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range outsideAddrs {
		fd, sa := pingSocket(t, ns, to)
		for _, n := range []int{0, 56, 1392, 1393, 3000, 20000, 65000} {
			echo := append([]byte{8, 0, 0, 0, 0, 0, 0, byte(n)}, bytes.Repeat([]byte{byte(n), 2, 3}, n/3+1)[:n]...)
			if !to.Is4() {
				echo[0] = 128
			}
			if err := unix.Sendto(fd, echo, 0, sa); err != nil {
				t.Fatalf("%s, %d bytes: %v", to, n, err)
			}
			got := make([]byte, 1<<16)
			k, _, err := unix.Recvfrom(fd, got, 0)
			if err != nil || !bytes.Equal(got[6:k], echo[6:]) {
				t.Fatalf("%s, %d bytes: %d came back, %v", to, n, k, err)
			}
		}
	}
	// The sender of a ping that must not be fragmented and does not fit the path is told the size that does.
	outsideMTU(t, 1300)
	for _, to := range outsideAddrs {
		fd, sa := pingSocket(t, ns, to)
		level, opt, value := unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
		if to.Is4() {
			level, opt, value = unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
		}
		if err := unix.SetsockoptInt(fd, level, opt, value); err != nil {
			t.Fatal(err)
		}
		echo := make([]byte, 1360)
		if echo[0] = 8; !to.Is4() {
			echo[0] = 128
		}
		if err := unix.Sendto(fd, echo, 0, sa); err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		if err := failure(t, fd); err != unix.EMSGSIZE {
			t.Errorf("%s: the pod heard %v, want %v", to, err, unix.EMSGSIZE)
		}
	}
	outsideMTU(t, 65536)
	// The reason why a destination is unreachable is told for small and large pings.
	waysOutside(t)
	for _, w := range ways {
		for i, to := range w.to {
			if w.errors[i] == nil {
				continue
			}
			for _, n := range []int{8, 3000} {
				fd, sa := pingSocket(t, ns, to)
				echo := make([]byte, n)
				if echo[0] = 8; !to.Is4() {
					echo[0] = 128
				}
				if err := unix.Sendto(fd, echo, 0, sa); err != nil {
					t.Fatalf("%s, %s: %v", w.name, to, err)
				}
				if err := failure(t, fd); !errors.Is(err, w.errors[i]) {
					t.Errorf("%s, %s, %d bytes: the pod heard %v, want %v", w.name, to, n, err, w.errors[i])
				}
			}
		}
	}
}
