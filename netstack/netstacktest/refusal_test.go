package netstacktest_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/tap"
)

// way is a destination outside that the node cannot reach, and the reason.
type way struct {
	name   string
	to     [2]netip.Addr // of each family
	route  int           // the type of the node's route to it; 0 for none
	errors [2]error      // the error in the pod; nil where the pod is told nothing
}

var ways = []way{
	{"no route", addrs2("198.51.100.1", "2001:db8:100::1"), 0, [2]error{unix.ENETUNREACH, unix.ENETUNREACH}},
	{"unreachable", addrs2("198.51.101.1", "2001:db8:101::1"), unix.RTN_UNREACHABLE, [2]error{unix.EHOSTUNREACH, unix.EHOSTUNREACH}},
	// Linux treats ICMP code 13 as an unreachable host (icmp_err_convert).
	{"prohibited", addrs2("198.51.102.1", "2001:db8:102::1"), unix.RTN_PROHIBIT, [2]error{unix.EHOSTUNREACH, unix.EACCES}},
	{"black hole", addrs2("198.51.103.1", "2001:db8:103::1"), unix.RTN_BLACKHOLE, [2]error{}},
}

func addrs2(a, b string) [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr(a), netip.MustParseAddr(b)}
}

// waysOutside adds the node's routes to all ways.
func waysOutside(t *testing.T) {
	t.Helper()
	for _, w := range ways {
		for _, a := range w.to {
			if w.route == 0 {
				continue
			}
			r := &netlink.Route{Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Type: w.route}
			if err := netlink.RouteReplace(r); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = netlink.RouteDel(r) })
		}
	}
}

// socket opens a socket in a pod, which receives all ICMP errors, and connects it.
func socket(t *testing.T, ns *tap.Namespace, kind int, to netip.AddrPort) (fd int, connectErr error) {
	t.Helper()
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	level, opt := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
		level, opt = unix.IPPROTO_IP, unix.IP_RECVERR
	}
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if kind != unix.SOCK_STREAM {
		if err := unix.SetsockoptInt(fd, level, opt, 1); err != nil {
			t.Fatal(err)
		}
	}
	return fd, unix.Connect(fd, sa)
}

// failure waits until a socket has a result and returns its error. A kernel puts an ICMP error in the socket's error
// queue, which poll tells, before it sets SO_ERROR.
func failure(t *testing.T, fd int) error {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for {
		n, err := unix.Poll(fds, 1000)
		if err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		if n <= 0 || fds[0].Revents&(unix.POLLERR|unix.POLLHUP) == 0 {
			continue
		}
		if err := pending(t, fd); err != nil || fds[0].Revents&unix.POLLERR == 0 {
			return err
		}
	}
}

// pending returns the error that a socket has now.
func pending(t *testing.T, fd int) error {
	t.Helper()
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		return nil
	}
	return unix.Errno(n)
}

// A pod is told why a destination is unreachable, as by a router on the path. It is told nothing where the node knows
// no reason.
func TestWhyUnreachable(t *testing.T) {
	_, ns := egress(t, 0)
	waysOutside(t)
	nobody := listenOutside(t, outsideAddrs[0])
	port := nobody.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	_ = nobody.Close()
	all := append([]way{{"nobody listens", [2]netip.Addr(outsideAddrs), 0, [2]error{unix.ECONNREFUSED, unix.ECONNREFUSED}}}, ways...)
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		for i, family := range []string{"IPv4", "IPv6"} {
			silent, sure := -1, -1
			for _, w := range all {
				name := fmt.Sprintf("%s, socket type %d, %s", w.name, kind, family)
				fd, err := socket(t, ns, kind, netip.AddrPortFrom(w.to[i], port))
				if kind == unix.SOCK_STREAM && err != unix.EINPROGRESS || kind == unix.SOCK_DGRAM && err != nil {
					t.Fatalf("%s: connect: %v", name, err)
				}
				if kind == unix.SOCK_DGRAM {
					if _, err := unix.Write(fd, []byte("hello")); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
				}
				if w.errors[i] == nil {
					silent = fd
					continue
				}
				if err := failure(t, fd); !errors.Is(err, w.errors[i]) {
					t.Errorf("%s: the pod heard %v, want %v", name, err, w.errors[i])
				}
			}
			// A later request has been answered, and the one to the black hole has not.
			sure, _ = socket(t, ns, unix.SOCK_STREAM, netip.AddrPortFrom(ways[0].to[i], port))
			if err := failure(t, sure); err != unix.ENETUNREACH {
				t.Errorf("the pod heard %v", err)
			}
			if err := pending(t, silent); err != nil {
				t.Errorf("of a black hole, socket type %d, %s, the pod heard %v", kind, family, err)
			}
		}
	}
}

// A time-out outside is a time-out for the pod, after as many SYNs as the pod likes to send.
func TestTimeOut(t *testing.T) {
	_, ns := egress(t, 0)
	const name = "hole"
	if err := tap.NewBridge(nil, name, 1500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.DeleteLink(nil, name) })
	if err := tap.SetUp(nil, name); err != nil {
		t.Fatal(err)
	}
	if err := tap.AddAddr(nil, name, netip.MustParsePrefix("198.51.104.1/24")); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	gone := netip.MustParseAddr("198.51.104.2")
	if err := netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gone.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 9, 9},
	}); err != nil {
		t.Fatal(err)
	}
	// The node's kernel gives up after 3 s, while the pod still repeats its SYN.
	if err := tap.SetSysctl(nil, "net.ipv4.tcp_syn_retries", "1"); err != nil {
		t.Fatal(err)
	}
	fd, err := socket(t, ns, unix.SOCK_STREAM, netip.AddrPortFrom(gone, 80))
	if err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 4000); err != nil {
		t.Fatal(err)
	}
	if err := failure(t, fd); err != unix.ETIMEDOUT {
		t.Errorf("the pod heard %v, want %v", err, unix.ETIMEDOUT)
	}
	// No neighbour answers for the address. The kernel notices and reports it.
	absent := netip.MustParseAddr("198.51.104.3")
	for key, value := range map[string]string{"net.ipv4.tcp_syn_retries": "6", "net.ipv4.neigh.hole.retrans_time_ms": "50"} {
		if err := tap.SetSysctl(nil, key, value); err != nil {
			t.Fatal(err)
		}
	}
	if fd, err = socket(t, ns, unix.SOCK_STREAM, netip.AddrPortFrom(absent, 80)); err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	if err := failure(t, fd); err != unix.EHOSTUNREACH {
		t.Errorf("the pod heard %v, want %v", err, unix.EHOSTUNREACH)
	}
}
