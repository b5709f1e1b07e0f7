package netstacktest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/stack"
	"tapestry.dev/tapestry/netstack/tap"
)

// far is a machine outside, connected to the node by a cable.
type far struct {
	ns   *tap.Namespace
	near string // the node's end of the cable
	addr netip.Addr
}

func newFar(t *testing.T, i byte) *far {
	t.Helper()
	ns, err := tap.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	near := netip.AddrFrom4([4]byte{198, 51, 105 + i, 1})
	f := &far{ns, fmt.Sprint("far", i), near.Next()}
	if err := errors.Join(
		tap.NewVeth(tap.End{Name: f.near}, tap.End{Namespace: ns, Name: "eth0"}, 1500),
		tap.AddAddr(nil, f.near, netip.PrefixFrom(near, 24)),
		tap.AddAddr(ns, "eth0", netip.PrefixFrom(f.addr, 24)),
	); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.DeleteLink(nil, f.near) })
	return f
}

// vanish makes the machine unreachable without any notice.
func (f *far) vanish(t *testing.T) {
	t.Helper()
	link, err := netlink.LinkByName(f.near)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: f.addr.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 9, 9},
	}); err != nil {
		t.Fatal(err)
	}
}

// listen and dial open a TCP socket in a namespace.
func listen(t *testing.T, ns *tap.Namespace, a netip.Addr) net.Listener {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func dial(t *testing.T, ns *tap.Namespace, to net.Addr) *net.TCPConn {
	t.Helper()
	var c net.Conn
	if err := ns.Do(func() (err error) {
		c, err = (&net.Dialer{KeepAlive: -1}).Dial("tcp", to.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

func accept(t *testing.T, l net.Listener) *net.TCPConn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// tcpInfo returns what the kernel knows of a connection.
func tcpInfo(t *testing.T, c *net.TCPConn) (info *unix.TCPInfo) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// A pod's keep-alive probes reach the far end, which answers. When the far end has vanished, the pod notices at its own
// pace. Both hold for connections that the pod has opened, and for those of clients.
func TestKeepAlive(t *testing.T) {
	path, ns, addrs := egressPod(t, 0)
	for i, name := range []string{"egress", "joined", "through the stack"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			f := newFar(t, byte(i))
			var pod, end *net.TCPConn
			switch name {
			case "egress":
				l := listen(t, f.ns, f.addr)
				pod = dial(t, ns, l.Addr())
				end = accept(t, l)
			case "joined":
				pod, end = f.client(t, ns, addrs[0], func(ctx context.Context, c *net.TCPConn, client, to netip.AddrPort) error {
					return path.Stack().Join(ctx, c, client, to, nil)
				})
			default: // as for a pod of another node
				s, ns, addr := stackAlone(t)
				pod, end = f.client(t, ns, addr, func(ctx context.Context, c *net.TCPConn, client, to netip.AddrPort) error {
					gate, err := s.Dial(ctx, "tcp", client, to)
					if err != nil {
						return err
					}
					defer gate.Close()
					go func() { _, _ = io.Copy(c, gate) }()
					_, err = gate.(io.ReaderFrom).ReadFrom(c)
					return err
				})
			}
			if err := pod.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}); err != nil {
				t.Fatal(err)
			}
			// Probes reach the far end, which receives nothing else, and are answered.
			before := tcpInfo(t, end).Segs_in
			for tcpInfo(t, end).Segs_in < before+2 || tcpInfo(t, pod).Last_ack_recv > 1000 {
				time.Sleep(10 * time.Millisecond)
			}
			f.vanish(t)
			began := time.Now()
			_ = pod.SetReadDeadline(netstacktest.Until(t))
			if _, err := pod.Read(make([]byte, 1)); !errors.Is(err, unix.ETIMEDOUT) {
				t.Errorf("the pod heard %v, want %v", err, unix.ETIMEDOUT)
			}
			t.Logf("noticed after %s; by the pod's schedule after 3 s", time.Since(began).Round(100*time.Millisecond))
		})
	}
}

// client opens a connection from the machine to the node, which join joins with a connection to a server in a pod. It
// returns both ends.
func (f *far) client(t *testing.T, ns *tap.Namespace, addr netip.Addr, join func(ctx context.Context, c *net.TCPConn, client, to netip.AddrPort) error) (pod, end *net.TCPConn) {
	t.Helper()
	l, outside := listen(t, ns, addr), listen(t, nil, f.addr.Prev())
	end = dial(t, f.ns, outside.Addr())
	c := accept(t, outside)
	joined := make(chan error, 1)
	go func() {
		joined <- join(t.Context(), c, c.RemoteAddr().(*net.TCPAddr).AddrPort(), l.Addr().(*net.TCPAddr).AddrPort())
	}()
	pod = accept(t, l)
	t.Cleanup(func() {
		_, _ = pod.Close(), c.Close()
		<-joined
	})
	return pod, end
}

// stackAlone returns a stack that is wired to a pod without a pipeline and without the relay.
func stackAlone(t *testing.T) (*stack.Stack, *tap.Namespace, netip.Addr) {
	t.Helper()
	ns, err := tap.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	addr, mac := netip.MustParseAddr("10.244.2.10"), packet.MAC{2, 0, 0, 0, 2, 10}
	f, err := tap.Create(ns, tap.PodConfig([]netip.Addr{addr}, mac, 1420))
	if err != nil {
		t.Fatal(err)
	}
	dev, err := tap.NewDevice(f, tap.Options{})
	if err != nil {
		f.Close()
		t.Fatal(err)
	}
	s, err := stack.New(stack.Options{MTU: 1420, SendIP: func([]byte, packet.VNetHdr) {}, Send: func(frame []byte) []byte {
		var p packet.Packet
		if p.ParseFrame(frame) == packet.Good {
			p.PutHead(frame, tap.RouterMAC, mac)
			_ = dev.Write(frame)
		}
		return frame[:cap(frame)]
	}})
	if err != nil {
		dev.Close()
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() {
		var p packet.Packet
		var turn stack.Turn
		ran <- dev.Run(func(frame []byte) []byte {
			if p.ParseFrame(frame) == packet.Good {
				s.Deliver(&p, &turn, false)
			}
			return frame[:cap(frame)]
		}, turn.End)
	}()
	t.Cleanup(func() {
		_ = dev.Close()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		s.Close()
	})
	return s, ns, addr
}
