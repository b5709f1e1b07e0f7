package impair_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/lab/impair"
	"tapestry.dev/tapestry/test/userns"
)

func TestMain(m *testing.M) { userns.Main(m) }

// node is a namespace on the underlay, with a UDP echo server.
type node struct {
	ns    *tap.Namespace
	port  string
	mac   packet.MAC
	addrs [2]netip.Addr // IPv4, IPv6
	echo  [2]netip.AddrPort
}

// underlay makes a bridge with n nodes.
func underlay(t *testing.T, n int) (*tap.Namespace, []*node) {
	t.Helper()
	ns := namespace(t)
	must(t, tap.NewBridge(ns, "br0", 1500))
	var nodes []*node
	for i := range n {
		b := byte(i + 1)
		nd := &node{
			ns: namespace(t), port: fmt.Sprintf("port%d", i), mac: packet.MAC{2, 0, 0, 0, 0, b},
			addrs: [2]netip.Addr{netip.AddrFrom4([4]byte{192, 168, 0, b}), netip.MustParseAddr(fmt.Sprintf("fd00::%d", b))},
		}
		must(t, tap.SetSysctl(nd.ns, "net.ipv6.conf.default.accept_dad", "0"))
		must(t, tap.NewVeth(tap.End{Namespace: ns, Name: nd.port}, tap.End{Namespace: nd.ns, Name: "eth0", MAC: nd.mac}, 1500))
		must(t, tap.SetBridge(ns, nd.port, "br0"))
		must(t, tap.AddAddr(nd.ns, "eth0", netip.PrefixFrom(nd.addrs[0], 24)))
		must(t, tap.AddAddr(nd.ns, "eth0", netip.PrefixFrom(nd.addrs[1], 64)))
		for i, a := range nd.addrs {
			nd.echo[i] = nd.serveEcho(t, a)
		}
		nodes = append(nodes, nd)
	}
	return ns, nodes
}

func namespace(t *testing.T) *tap.Namespace {
	t.Helper()
	ns, err := tap.NewNamespace()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	must(t, tap.SetUp(ns, "lo"))
	return ns
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) serveEcho(t *testing.T, addr netip.Addr) netip.AddrPort {
	t.Helper()
	var c *net.UDPConn
	must(t, n.ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (n *node) dial(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	must(t, n.ns.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

// ping sends size bytes and waits for the echo. It returns the round-trip time, and false when no echo came.
func ping(t *testing.T, c *net.UDPConn, size int, wait time.Duration) (time.Duration, bool) {
	t.Helper()
	b := make([]byte, size)
	sent := time.Now()
	copy(b, sent.Format(time.RFC3339Nano))
	if _, err := c.Write(b); err != nil {
		return 0, false
	}
	must(t, c.SetReadDeadline(sent.Add(wait)))
	in := make([]byte, 2000)
	for {
		n, err := c.Read(in)
		if err != nil {
			return 0, false
		}
		if string(in[:n]) == string(b) { // not the echo of an earlier ping
			return time.Since(sent), true
		}
	}
}

// reach pings until an echo comes, since neighbours are resolved and bridges learn addresses first.
func reach(t *testing.T, c *net.UDPConn) time.Duration {
	t.Helper()
	for deadline := time.Now().Add(await.Patience); time.Now().Before(deadline); {
		if took, ok := ping(t, c, 100, 200*time.Millisecond); ok {
			return took
		}
	}
	t.Fatalf("%s does not reach %s", c.LocalAddr(), c.RemoteAddr())
	return 0
}

func insert(t *testing.T, ns *tap.Namespace, a, b *node, c impair.Config) *impair.Segment {
	t.Helper()
	s, err := impair.Insert(impair.Options{Namespace: ns, Port: a.port, A: a.mac, B: b.mac, Config: c})
	must(t, err)
	t.Cleanup(func() { s.Remove() })
	return s
}

func links(t *testing.T, ns *tap.Namespace) []string {
	t.Helper()
	h, err := ns.Handle()
	must(t, err)
	defer h.Close()
	list, err := h.LinkList()
	must(t, err)
	var s []string
	for _, l := range list {
		s = append(s, fmt.Sprintf("%s<%d", l.Attrs().Name, l.Attrs().MasterIndex))
	}
	slices.Sort(s)
	return s
}

func TestSegment(t *testing.T) {
	for i, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			ns, n := underlay(t, 3)
			a, b, c := n[0], n[1], n[2]
			before := links(t, ns)
			ab, ba, ac := a.dial(t, b.echo[i]), b.dial(t, a.echo[i]), a.dial(t, c.echo[i])
			reach(t, ab)

			s := insert(t, ns, a, b, impair.Config{})
			for _, conn := range []*net.UDPConn{ab, ba, ac} {
				reach(t, conn)
			}
			if st := s.Stats(impair.AToB); st.Passed == 0 {
				t.Errorf("a good path: %+v", st)
			}

			const delay = 40 * time.Millisecond
			must(t, s.Set(impair.Config{Delay: delay}))
			for _, conn := range []*net.UDPConn{ab, ba} {
				if took := reach(t, conn); took < 2*delay {
					t.Errorf("there and back in %v, twice %v was asked for", took, delay)
				}
			}

			must(t, s.Set(impair.Config{Loss: 1}))
			if _, ok := ping(t, ab, 100, 100*time.Millisecond); ok {
				t.Error("an echo over a path that loses everything")
			}
			if s.Stats(impair.AToB).Lost == 0 {
				t.Error("no loss counted")
			}
			reach(t, ac)
			must(t, s.Set(impair.Config{Loss: 1, Family: 4 + 2*i}))
			if _, ok := ping(t, ab, 100, 100*time.Millisecond); ok {
				t.Error("an echo over a path that loses everything of its family")
			}
			must(t, s.Set(impair.Config{Loss: 1, Family: 6 - 2*i}))
			reach(t, ab)

			must(t, s.Set(impair.Config{Duplicate: 1}))
			reach(t, ab)
			if st := s.Stats(impair.BToA); st.Duplicated == 0 {
				t.Errorf("duplication: %+v", st)
			}

			must(t, s.Remove())
			if after := links(t, ns); !slices.Equal(before, after) {
				t.Errorf("interfaces before %v, after %v", before, after)
			}
			for _, conn := range []*net.UDPConn{ab, ba, ac} {
				reach(t, conn)
			}
			must(t, s.Remove()) // a second Remove is no error
		})
	}
}

// TestOrder sends a numbered burst. It arrives in order without reordering, and out of order with it.
func TestOrder(t *testing.T) {
	ns, n := underlay(t, 2)
	c := n[0].dial(t, n[1].echo[0])
	s := insert(t, ns, n[0], n[1], impair.Config{})
	for _, tc := range []struct {
		name    string
		cfg     impair.Config
		ordered bool
	}{
		{"jitter", impair.Config{Delay: 5 * time.Millisecond, Jitter: 5 * time.Millisecond, Seed: 1}, true},
		{"reorder", impair.Config{Reorder: 0.2, Seed: 1}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			must(t, s.Set(impair.Config{}))
			reach(t, c)
			must(t, s.Set(tc.cfg))
			for i := range 50 {
				_, err := c.Write([]byte{byte(i)})
				must(t, err)
			}
			var got []byte
			buf := make([]byte, 100)
			must(t, c.SetReadDeadline(time.Now().Add(await.Patience)))
			for len(got) < 50 {
				n, err := c.Read(buf)
				must(t, err)
				if n == 1 {
					got = append(got, buf[0])
				}
			}
			if ordered := slices.IsSorted(got); ordered != tc.ordered {
				t.Errorf("arrived in order: %v: %v", ordered, got)
			}
		})
	}
}

func TestMTU(t *testing.T) {
	const mtu = 1300
	for i, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			ns, n := underlay(t, 2)
			a, b := n[0], n[1]
			c := a.dial(t, b.echo[i])
			dontFragment(t, c, i == 1)
			reach(t, c)
			s := insert(t, ns, a, b, impair.Config{MTU: mtu})
			reach(t, c)

			// A black hole: no packet arrives, and no ICMP error comes back.
			if _, ok := ping(t, c, mtu, 100*time.Millisecond); ok {
				t.Error("a packet larger than the MTU passed")
			}
			if got := pathMTU(t, c, i == 1); got != 1500 {
				t.Errorf("without ICMP the path MTU became %d", got)
			}
			headers := 28 + 20*i
			if _, ok := ping(t, c, mtu-headers, time.Second); !ok {
				t.Error("a packet of just the MTU did not pass")
			}
			if st := s.Stats(impair.AToB); st.TooBig == 0 {
				t.Errorf("%+v", st)
			}

			must(t, s.Set(impair.Config{MTU: mtu, ICMP: true}))
			for deadline := time.Now().Add(await.Patience); ; {
				_, err := c.Write(make([]byte, mtu))
				if errors.Is(err, unix.EMSGSIZE) {
					break
				}
				must(t, err)
				if time.Now().After(deadline) {
					t.Fatal("no EMSGSIZE")
				}
				time.Sleep(time.Millisecond)
			}
			if got := pathMTU(t, c, i == 1); got != mtu {
				t.Errorf("path MTU %d, want %d", got, mtu)
			}
		})
	}
}

// TestFragments sends packets without DF over a path with a small MTU.
func TestFragments(t *testing.T) {
	ns, n := underlay(t, 2)
	insert(t, ns, n[0], n[1], impair.Config{MTU: 600})
	reach(t, n[0].dial(t, n[1].echo[0]))
	var server *net.UDPConn
	must(t, n[1].ns.Do(func() (err error) {
		server, err = net.ListenUDP("udp", &net.UDPAddr{IP: n[1].addrs[0].AsSlice()})
		return err
	}))
	defer server.Close()
	c := n[0].dial(t, server.LocalAddr().(*net.UDPAddr).AddrPort())
	setsockopt(t, c, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	want := strings.Repeat("0123456789", 140)
	_, err := c.Write([]byte(want))
	must(t, err)
	buf := make([]byte, 2000)
	must(t, server.SetReadDeadline(time.Now().Add(await.Patience)))
	m, err := server.Read(buf)
	must(t, err)
	if string(buf[:m]) != want {
		t.Errorf("received %d bytes", m)
	}
}

func dontFragment(t *testing.T, c *net.UDPConn, v6 bool) {
	t.Helper()
	if v6 {
		setsockopt(t, c, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
	} else {
		setsockopt(t, c, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}
}

func setsockopt(t *testing.T, c *net.UDPConn, level, opt, value int) {
	t.Helper()
	rc, err := c.SyscallConn()
	must(t, err)
	must(t, rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, value) }))
	must(t, err)
}

func pathMTU(t *testing.T, c *net.UDPConn, v6 bool) (mtu int) {
	t.Helper()
	level, opt := unix.IPPROTO_IP, unix.IP_MTU
	if v6 {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	rc, err := c.SyscallConn()
	must(t, err)
	must(t, rc.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, opt) }))
	must(t, err)
	return mtu
}

// TestStream sends superframes into a segment. The data must arrive whole at the other end of the path.
func TestStream(t *testing.T) {
	ns, n := underlay(t, 2)
	s := insert(t, ns, n[0], n[1], impair.Config{Loss: 0.001, Delay: time.Millisecond, Reorder: 0.001, Seed: 1})
	var l net.Listener
	must(t, n[1].ns.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(n[1].addrs[0], 0).String())
		return err
	}))
	defer l.Close()
	const size = 2 << 20
	got := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- -1
			return
		}
		defer c.Close()
		m, _ := io.Copy(io.Discard, c)
		got <- m
	}()
	var c net.Conn
	must(t, n[0].ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", l.Addr().String(), await.Patience)
		return err
	}))
	_, err := c.Write(make([]byte, size))
	must(t, err)
	c.Close()
	if m := <-got; m != size {
		t.Errorf("%d of %d bytes arrived", m, size)
	}
	if st := s.Stats(impair.AToB); st.Passed < size/1500 {
		t.Errorf("superframes were not cut: %+v", st)
	}
}

// TestSeveral puts two segments in front of one port and removes them in both orders.
func TestSeveral(t *testing.T) {
	for _, firstOut := range []bool{true, false} {
		t.Run(fmt.Sprintf("first out %v", firstOut), func(t *testing.T) {
			ns, n := underlay(t, 3)
			before := links(t, ns)
			ab, ac := n[0].dial(t, n[1].echo[0]), n[0].dial(t, n[2].echo[0])
			first := insert(t, ns, n[0], n[1], impair.Config{Delay: 20 * time.Millisecond})
			second := insert(t, ns, n[0], n[2], impair.Config{Delay: 40 * time.Millisecond})
			if took := reach(t, ab); took < 40*time.Millisecond {
				t.Errorf("first pair in %v", took)
			}
			if took := reach(t, ac); took < 80*time.Millisecond {
				t.Errorf("second pair in %v", took)
			}
			if !firstOut {
				first, second = second, first
			}
			must(t, first.Remove())
			reach(t, ab)
			reach(t, ac)
			must(t, second.Remove())
			if after := links(t, ns); !slices.Equal(before, after) {
				t.Errorf("interfaces before %v, after %v", before, after)
			}
			reach(t, ab)
			reach(t, ac)
		})
	}
}

func TestInsertRefuses(t *testing.T) {
	ns, n := underlay(t, 2)
	must(t, tap.NewBridge(ns, "lonely", 0))
	before := links(t, ns)
	for _, tc := range []struct {
		opts impair.Options
		want string
	}{
		{impair.Options{Port: "absent"}, "absent"},
		{impair.Options{Port: "lonely"}, "must be a port of the underlay's bridge"},
		{impair.Options{Port: n[0].port, Config: impair.Config{Loss: 2}}, "loss is 2"},
	} {
		tc.opts.Namespace = ns
		if _, err := impair.Insert(tc.opts); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error %v, want %q", tc.opts, err, tc.want)
		}
	}
	if after := links(t, ns); !slices.Equal(before, after) {
		t.Errorf("left behind: before %v, after %v", before, after)
	}
}
