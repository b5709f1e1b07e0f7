package netstacktest_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/tap"
)

// options are the socket options and control messages of a family that concern IP headers.
type options struct {
	level, ttl, class, recvTTL, recvClass, recvErr int
	toldTTL, toldClass                             int32 // types of control messages
}

func optionsOf(a netip.Addr) options {
	if a.Is4() {
		return options{unix.IPPROTO_IP, unix.IP_TTL, unix.IP_TOS, unix.IP_RECVTTL, unix.IP_RECVTOS, unix.IP_RECVERR, unix.IP_TTL, unix.IP_TOS}
	}
	return options{
		unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_TCLASS, unix.IPV6_RECVHOPLIMIT, unix.IPV6_RECVTCLASS, unix.IPV6_RECVERR,
		unix.IPV6_HOPLIMIT, unix.IPV6_TCLASS,
	}
}

// set sets options of a socket.
func set(t *testing.T, c *net.UDPConn, level int, values map[int]int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range values {
		var serr error
		if err := raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), level, name, value) }); err != nil || serr != nil {
			t.Fatalf("option %d: %v, %v", name, err, serr)
		}
	}
}

// says reads a datagram and returns what its IP header said.
func says(t *testing.T, c *net.UDPConn, o options) (ttl, class int, from netip.AddrPort) {
	t.Helper()
	oob := make([]byte, 256)
	_, n, _, from, err := c.ReadMsgUDPAddrPort(make([]byte, 2000), oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		switch {
		case int(m.Header.Level) == o.level && m.Header.Type == o.toldTTL:
			ttl = int(binary.NativeEndian.Uint32(m.Data))
		case int(m.Header.Level) == o.level && m.Header.Type == o.toldClass:
			class = int(m.Data[0])
		}
	}
	return ttl, class, from
}

// TTL and traffic class of a pod's packets are passed on to the outside, and those of the answers to the pod.
func TestEgressHead(t *testing.T) {
	_, ns := egress(t, 0)
	for _, addr := range outsideAddrs {
		o := optionsOf(addr)
		out := listenOutside(t, addr)
		pod := dialOutside(t, ns, out)
		for _, c := range []*net.UDPConn{out, pod} {
			set(t, c, o.level, map[int]int{o.recvTTL: 1, o.recvClass: 1})
		}
		for _, want := range []struct{ ttl, class int }{{64, 0}, {255, 0xb8}, {3, 0x02}, {3, 0x28}, {64, 0}} {
			set(t, pod, o.level, map[int]int{o.ttl: want.ttl, o.class: want.class})
			if _, err := pod.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			ttl, class, client := says(t, out, o)
			if ttl != want.ttl || class != want.class {
				t.Errorf("%s: outside the TTL is %d and the class %#x, want %d and %#x", addr, ttl, class, want.ttl, want.class)
			}
			set(t, out, o.level, map[int]int{o.ttl: want.ttl, o.class: want.class})
			if _, err := out.WriteToUDPAddrPort([]byte("hello"), client); err != nil {
				t.Fatal(err)
			}
			if ttl, class, _ = says(t, pod, o); ttl != want.ttl || class != want.class {
				t.Errorf("%s: at the pod the TTL is %d and the class %#x, want %d and %#x", addr, ttl, class, want.ttl, want.class)
			}
		}
	}
}

// A pod's connections keep the pod's TTL and traffic class outside. Protocols whose neighbours must be one hop away
// (RFC 5082) check the TTL of every segment.
func TestEgressHeadTCP(t *testing.T) {
	_, ns := egress(t, 0)
	if err := tap.SetSysctl(nil, "net.ipv4.tcp_reflect_tos", "1"); err != nil { // of both families
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.SetSysctl(nil, "net.ipv4.tcp_reflect_tos", "0") })
	for _, addr := range outsideAddrs {
		o, least := optionsOf(addr), unix.IPV6_MINHOPCOUNT
		if addr.Is4() {
			least = unix.IP_MINTTL
		}
		strict := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), o.level, least, 255) })
			return errors.Join(err, cerr)
		}}
		l, err := strict.Listen(t.Context(), "tcp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		const class = 0xb8
		pod := net.Dialer{Deadline: netstacktest.Until(t), Control: func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) {
				err = errors.Join(unix.SetsockoptInt(int(fd), o.level, o.ttl, 255), unix.SetsockoptInt(int(fd), o.level, o.class, class))
			})
			return errors.Join(err, cerr)
		}}
		var c net.Conn
		if err := ns.Do(func() (err error) {
			c, err = pod.Dial("tcp", l.Addr().String())
			return err
		}); err != nil {
			t.Fatalf("%s takes connections with a TTL of 255 alone: %v", addr, err)
		}
		t.Cleanup(func() { _ = c.Close() })
		raw, err := accept(t, l).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var got int
		if cerr := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), o.level, o.class) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		if got != class {
			t.Errorf("%s: the class is %#x, want %#x", addr, got, class)
		}
	}
}

// router makes a router outside, behind which nobody answers. It returns the router's addresses and addresses behind
// it.
func router(t *testing.T) (near, behind [2]netip.Addr) {
	t.Helper()
	ns, err := tap.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	addr := netip.MustParsePrefix
	ends := []netip.Prefix{addr("198.51.110.2/24"), addr("2001:db8:105::2/64")}
	far := []netip.Prefix{addr("203.0.113.1/24"), addr("2001:db8:113::1/64")}
	errs := []error{
		tap.NewVeth(tap.End{Name: "torouter"}, tap.End{Namespace: ns, Name: "eth0"}, 1500),
		tap.NewBridge(ns, "far", 1500), tap.SetSysctl(ns, "net.ipv6.conf.far.disable_ipv6", "0"), tap.SetUp(ns, "far"),
		tap.SetSysctl(ns, "net.ipv4.ip_forward", "1"), tap.SetSysctl(ns, "net.ipv6.conf.all.forwarding", "1"),
	}
	t.Cleanup(func() { _ = tap.DeleteLink(nil, "torouter") })
	for i := range 2 {
		near[i], behind[i] = ends[i].Addr(), far[i].Addr().Next()
		errs = append(errs,
			tap.AddAddr(ns, "eth0", ends[i]), tap.AddAddr(ns, "far", far[i]),
			tap.AddAddr(nil, "torouter", netip.PrefixFrom(ends[i].Addr().Prev(), ends[i].Bits())),
			tap.AddRoute(nil, "torouter", tap.Route{Dst: far[i].Masked(), Via: near[i]}))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return near, behind
}

// A pod can trace the path to the outside hop by hop, as traceroute does with datagrams, pings and connections.
func TestTraceroute(t *testing.T) {
	_, ns := egress(t, 0)
	for _, where := range []*tap.Namespace{nil, ns} {
		if err := tap.EnableUnprivilegedPing(where); err != nil {
			t.Fatal(err)
		}
	}
	near, behind := router(t)
	exceeded := [2]uint8{11, 3} // RFC 792, RFC 4443
	for i, to := range behind {
		o := optionsOf(to)
		for _, kind := range []string{"datagram", "ping", "connection"} {
			fd, sa, message := -1, unix.Sockaddr(nil), []byte{8, 0, 0, 0, 0, 0, 0, 7}
			switch kind {
			case "ping":
				if fd, sa = pingSocket(t, ns, to); !to.Is4() {
					message[0] = 128
				}
			case "datagram":
				fd, _ = socket(t, ns, unix.SOCK_DGRAM, netip.AddrPortFrom(to, 33434))
			default:
				fd, sa = unopened(t, ns, netip.AddrPortFrom(to, 80))
			}
			if err := errors.Join(unix.SetsockoptInt(fd, o.level, o.ttl, 1), unix.SetsockoptInt(fd, o.level, o.recvErr, 1)); err != nil {
				t.Fatal(err)
			}
			if kind == "connection" {
				if err := unix.Connect(fd, sa); err != unix.EINPROGRESS {
					t.Fatal(err)
				}
			} else if err := unix.Sendto(fd, message, 0, sa); err != nil {
				t.Fatal(err)
			}
			if icmp, by := errorOf(t, fd); icmp != exceeded[i] || by != near[i] {
				t.Errorf("%s to %s: ICMP type %d from %s, want %d from %s", kind, to, icmp, by, exceeded[i], near[i])
			}
		}
	}
}

// unopened returns a TCP socket in a pod, and the address to connect it to.
func unopened(t *testing.T, ns *tap.Namespace, to netip.AddrPort) (fd int, sa unix.Sockaddr) {
	t.Helper()
	family := unix.AF_INET6
	sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	if err := ns.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd, sa
}

// errorOf waits for an ICMP error about a packet of a socket, and returns its type and its sender.
func errorOf(t *testing.T, fd int) (kind uint8, by netip.Addr) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd)}}
	for giveUp := netstacktest.GiveUp(t); fds[0].Revents == 0; {
		if _, err := unix.Poll(fds, 100); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		select {
		case <-giveUp:
			t.Fatal("no error came")
		default:
		}
	}
	oob := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 512), oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if m.Header.Type != unix.IP_RECVERR && m.Header.Type != unix.IPV6_RECVERR || len(m.Data) < 16+16 {
			continue
		}
		kind = m.Data[5] // of struct sock_extended_err, which a sockaddr follows
		if binary.NativeEndian.Uint16(m.Data[16:]) == unix.AF_INET {
			return kind, netip.AddrFrom4([4]byte(m.Data[20:]))
		}
		return kind, netip.AddrFrom16([16]byte(m.Data[24:]))
	}
	t.Fatal("the error says nothing")
	return 0, by
}
