package netstacktest_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/tap"
)

// outsideAddrs are addresses of the loopback interface in the tests' own network, which is the outside for the pods.
var outsideAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// outsideMTU sets the MTU of the path to the outside, and adds outsideAddrs to it.
func outsideMTU(t *testing.T, mtu int) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(lo, mtu); err != nil {
		t.Fatal(err)
	}
	if err := netstacktest.Outside(outsideAddrs...); err != nil {
		t.Fatal(err)
	}
}

// egress makes a node, and a pod on a real TAP whose kernel lacks some offloads.
func egress(t *testing.T, without tap.Offloads) (*netstack.Path, *tap.Namespace) {
	t.Helper()
	path, ns, _ := egressPod(t, without)
	return path, ns
}

// egressPod also returns the pod's addresses.
func egressPod(t *testing.T, without tap.Offloads) (*netstack.Path, *tap.Namespace, []netip.Addr) {
	t.Helper()
	flows, err := flow.Open(make([]byte, flow.Size(64)), flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	path, err := netstack.New(netstack.Options{Flows: flows, MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { path.Close() })
	ns, _, addrs := pod(t, path, 10, without)
	ranges := []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00::/64")}
	if err := path.Set(netstack.Config{PodCIDRs: ranges, ClusterCIDRs: ranges, MTU: 1420}, nothing{}, nil); err != nil {
		t.Fatal(err)
	}
	outsideMTU(t, 65536)
	return path, ns, addrs
}

// listenOutside opens a socket outside.
func listenOutside(t *testing.T, a netip.Addr) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(netstacktest.Until(t))
	return c
}

// dialOutside opens a socket in a pod, connected to c.
func dialOutside(t *testing.T, ns *tap.Namespace, c *net.UDPConn) (pod *net.UDPConn) {
	t.Helper()
	err := ns.Do(func() (err error) {
		pod, err = net.DialUDP("udp", nil, c.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pod.Close() })
	_ = pod.SetDeadline(netstacktest.Until(t))
	return pod
}

// Datagrams of all sizes arrive outside from one port, and their echo at the pod, also those that the pod's kernel
// sends in fragments.
func TestEgressUDP(t *testing.T) {
	for _, without := range []tap.Offloads{0, tap.USO, tap.AllOffloads} {
		for _, addr := range outsideAddrs {
			t.Run(fmt.Sprintf("%s without %s", addr, without), func(t *testing.T) {
				_, ns := egress(t, without)
				out := listenOutside(t, addr)
				pod := dialOutside(t, ns, out)
				buf := make([]byte, 65535)
				var ports []uint16
				for _, n := range []int{0, 1, 1000, 1372, 4000, 20000, 100} {
					data := bytes.Repeat([]byte{byte(n)}, n)
					if _, err := pod.Write(data); err != nil {
						t.Fatalf("send %d bytes: %v", n, err)
					}
					k, client, err := out.ReadFromUDPAddrPort(buf)
					if err != nil || !bytes.Equal(buf[:k], data) {
						t.Fatalf("%d bytes arrived outside, want %d, or others; %v", k, n, err)
					}
					ports = append(ports, client.Port())
					if _, err := out.WriteToUDPAddrPort(data, client); err != nil {
						t.Fatal(err)
					}
					if k, err = pod.Read(buf); err != nil || !bytes.Equal(buf[:k], data) {
						t.Fatalf("%d bytes came back, want %d, or others; %v", k, n, err)
					}
				}
				if ports = slices.Compact(ports); len(ports) != 1 {
					t.Errorf("the datagrams came from the ports %v, want one", ports)
				}
			})
		}
	}
}

// Datagrams that are sent by one call arrive one by one. The pod's kernel and the relay keep them together as far as
// they can.
func TestEgressUDPSuperframes(t *testing.T) {
	for _, without := range []tap.Offloads{0, tap.USO, tap.AllOffloads} {
		_, ns := egress(t, without)
		for _, addr := range outsideAddrs {
			out := listenOutside(t, addr)
			pod := dialOutside(t, ns, out)
			const size, count = 1200, 40
			sent := bytes.Repeat([]byte("0123456789ab"), size*count/12)
			for i := range count {
				sent[i*size] = byte(i)
			}
			for _, c := range []*net.UDPConn{pod, out} {
				raw, err := c.SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) }); cerr != nil || err != nil {
					t.Fatal(cerr, err)
				}
			}
			if _, err := pod.Write(sent); err != nil {
				t.Fatal(err)
			}
			client := same(t, out, sent, size)
			if _, err := out.WriteToUDPAddrPort(sent, client); err != nil {
				t.Fatal(err)
			}
			same(t, pod, sent, size)
		}
	}
}

// same expects what was sent, in datagrams of size bytes, and returns the sender.
func same(t *testing.T, c *net.UDPConn, sent []byte, size int) (from netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 65535)
	for at := 0; at < len(sent); at += size {
		n, client, err := c.ReadFromUDPAddrPort(buf)
		if err != nil || !bytes.Equal(buf[:n], sent[at:at+size]) {
			t.Fatalf("datagram %d has %d bytes, or others: %v", at/size, n, err)
		}
		from = client
	}
	return from
}

// The pod's kernel gets the errors of the host's socket: a refusal, and the path's MTU.
func TestEgressUDPErrors(t *testing.T) {
	_, ns := egress(t, 0)
	for _, addr := range outsideAddrs {
		out := listenOutside(t, addr)
		pod := dialOutside(t, ns, out)
		outsideMTU(t, 1300)
		data := bytes.Repeat([]byte{7}, 1350)
		if _, err := pod.Write(data); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 65535)
		if _, err := pod.Read(buf); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%s: a datagram that does not fit the path: %v, want %v", addr, err, unix.EMSGSIZE)
		}
		if _, err := pod.Write(data); err != nil {
			t.Fatal(err)
		}
		if n, _, err := out.ReadFromUDPAddrPort(buf); err != nil || !bytes.Equal(buf[:n], data) {
			t.Errorf("%s: %d bytes arrived of a datagram in fragments: %v", addr, n, err)
		}
		outsideMTU(t, 65536)
		_ = out.Close()
		if _, err := pod.Write([]byte("anybody there?")); err != nil {
			t.Fatal(err)
		}
		if _, err := pod.Read(buf); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: nobody listens: %v, want %v", addr, err, unix.ECONNREFUSED)
		}
	}
}
