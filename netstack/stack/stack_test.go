package stack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/tap"
)

var (
	podAddr = netip.MustParseAddr("10.244.1.10")
	podMAC  = packet.MAC{2, 1}
	config  = Config{
		Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.1")},
		Local: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		MTU:   1420,
	}
)

// wired joins a stack and one pod without a pipeline in between.
func wired(t *testing.T) (*Stack, *netstacktest.Pod) {
	t.Helper()
	dev := netstacktest.NewDevice()
	poller, err := poll.New(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = poller.Close() })
	s, err := New(Options{Send: func(frame []byte) []byte {
		var p packet.Packet
		if p.ParseFrame(frame) == packet.Good {
			p.PutHead(frame, tap.RouterMAC, podMAC)
			_ = dev.Write(frame) // a full queue loses frames, as a TAP's does
		}
		return frame[:cap(frame)]
	}, SendIP: func(ip []byte, vnet packet.VNetHdr) {
		var p packet.Packet
		if p.ParseIP(ip) == packet.Good {
			p.VNet = vnet
			frame := make([]byte, packet.HeadLen+len(ip))
			copy(frame[packet.HeadLen:], ip)
			p.PutHead(frame, tap.RouterMAC, podMAC)
			_ = dev.Write(frame)
		}
	}, Poller: poller, MTU: config.MTU})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Set(config); err != nil {
		t.Fatal(err)
	}
	pod, err := netstacktest.NewPod(dev, podMAC, tap.RouterMAC, config.MTU, podAddr)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() {
		var p packet.Packet
		var turn Turn
		ran <- dev.Run(func(frame []byte) []byte {
			if p.ParseFrame(frame) == packet.Good {
				s.Deliver(&p, &turn, false)
			}
			return frame
		}, turn.End)
	}()
	t.Cleanup(func() {
		pod.Close()
		_ = dev.Close()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		s.Close()
	})
	return s, pod
}

// greet accepts connections one at a time and writes the client's address to each.
func greet(t *testing.T, l net.Listener) {
	t.Helper()
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.RemoteAddr().String())
			_ = c.Close()
		}
	}()
}

func TestDialAsClient(t *testing.T) {
	s, pod := wired(t)
	at := netip.AddrPortFrom(podAddr, 80)
	l, err := pod.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	greet(t, l)
	for _, c := range []struct{ client, seen string }{
		{"", "10.244.1.1:"},
		{"198.51.100.7:4000", "198.51.100.7:4000"},
		{"198.51.100.7:0", "198.51.100.7:"},
		{"[::ffff:198.51.100.8]:4001", "198.51.100.8:4001"},
	} {
		ctx, cancel := context.WithDeadline(context.Background(), netstacktest.Until(t))
		var client netip.AddrPort
		if c.client != "" {
			client = netip.MustParseAddrPort(c.client)
		}
		conn, err := s.Dial(ctx, "tcp", client, at)
		cancel()
		if err != nil {
			t.Fatalf("as %q: %v", c.client, err)
		}
		_ = conn.SetReadDeadline(netstacktest.Until(t))
		seen, err := io.ReadAll(conn)
		_ = conn.Close()
		if err != nil || !strings.HasPrefix(string(seen), c.seen) {
			t.Errorf("as %q the pod saw %q, %v", c.client, seen, err)
		}
	}
}

// A local port is in use towards one destination only. When none is left towards one, a dial fails at once.
func TestPortsAreOfDestinations(t *testing.T) {
	s, pod := wired(t)
	const ports = 4
	if err := s.stack.SetPortRange(40000, 40000+ports-1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	for _, port := range []uint16{80, 81} {
		at := netip.AddrPortFrom(podAddr, port)
		l, err := pod.Listen(at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		got := 0
		for range 2 * ports {
			c, err := s.Dial(ctx, "tcp", netip.AddrPort{}, at)
			if err != nil {
				continue
			}
			got++
			t.Cleanup(func() { _ = c.Close() })
		}
		if got != ports {
			t.Errorf("%d connections to port %d, want one from each of %d ports", got, port, ports)
		}
		if _, err := s.Dial(ctx, "tcp", netip.AddrPort{}, at); !errors.Is(err, ErrNoPort) {
			t.Errorf("when all ports are in use: %v", err)
		}
		// A client's own port is used, whoever else has it towards another destination.
		c, err := s.Dial(ctx, "tcp", netip.MustParseAddrPort("198.51.100.7:4000"), at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if c.LocalAddr().String() != "198.51.100.7:4000" {
			t.Errorf("port %d sees %s", port, c.LocalAddr())
		}
	}
	if n := s.keeping.n.Load(); n != 2*(ports+1) {
		t.Errorf("%d connections are kept, want %d: dials that failed leave nothing behind", n, 2*(ports+1))
	}
}

func TestDialRefuses(t *testing.T) {
	s, _ := wired(t)
	for _, c := range []struct{ network, client, to, want string }{
		{"tcp", "[2001:db8::1]:1", "10.244.1.10:80", "different families"},
		{"tcp", "", "[fd00::1]:80", "no pod range of that family"},
		{"sctp", "", "10.244.1.10:80", "sctp"},
	} {
		var client netip.AddrPort
		if c.client != "" {
			client = netip.MustParseAddrPort(c.client)
		}
		_, err := s.Dial(context.Background(), c.network, client, netip.MustParseAddrPort(c.to))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := s.ListenPacket(netip.MustParseAddrPort("0.0.0.0:53")); err == nil {
		t.Error("a socket on any address would catch what pods send outside")
	}
}

func TestSetIsTheWholeState(t *testing.T) {
	s, pod := wired(t)
	dns := netip.AddrPortFrom(config.Local[0], 53)
	l, err := s.Listen(dns)
	if err != nil {
		t.Fatal(err)
	}
	greet(t, l)
	if err := s.Set(config); err != nil {
		t.Fatalf("the same again: %v", err)
	}
	dial := func() error {
		ctx, cancel := context.WithDeadline(context.Background(), netstacktest.Until(t))
		defer cancel()
		c, err := pod.Dial(ctx, "tcp", dns)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if err := dial(); err != nil {
		t.Fatal(err)
	}
	moved := config
	moved.Local = []netip.Addr{netip.MustParseAddr("10.96.0.11")}
	if err := s.Set(moved); err != nil {
		t.Fatal(err)
	}
	owns := func(a netip.Addr) bool { return s.owns(packet.AddrFrom(a)) }
	if owns(config.Local[0]) || !owns(moved.Local[0]) || !owns(config.Addrs[0]) {
		t.Errorf("the stack owns %v", *s.addrs.Load())
	}
}

// The stack has no UDP offload, so it gets the datagrams of a superframe one by one.
func TestUDPSuperframeIsSegmented(t *testing.T) {
	s, _ := wired(t)
	at := netip.AddrPortFrom(config.Local[0], 53)
	pc, err := s.ListenPacket(at)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	const size = 1000
	frame := netstacktest.Spec{
		Src: netip.AddrPortFrom(podAddr, 5353), Dst: at, Proto: packet.UDP, Payload: make([]byte, 2*size+500),
	}.Frame(podMAC, tap.RouterMAC)
	packet.VNetHdr{
		Flags: packet.NeedsCsum, GSOType: packet.GSOUDPL4, GSOSize: size,
		HdrLen: packet.EthLen + 28, CsumStart: packet.EthLen + 20, CsumOffset: 6,
	}.Encode(frame)
	var p packet.Packet
	if fault := p.ParseFrame(frame); fault != packet.Good {
		t.Fatalf("fault %d", fault)
	}
	s.Deliver(&p, new(Turn), false)
	buf := make([]byte, 65535)
	for _, want := range []int{size, size, 500} {
		_ = pc.SetReadDeadline(netstacktest.Until(t))
		n, from, err := pc.ReadFrom(buf)
		if err != nil || n != want || from.String() != "10.244.1.10:5353" {
			t.Fatalf("a datagram of %d bytes from %v, %v; want %d", n, from, err, want)
		}
	}
}

func TestCloseEndsWhatRuns(t *testing.T) {
	s, err := New(Options{
		Send:   func(frame []byte) []byte { return frame[:cap(frame)] },
		SendIP: func([]byte, packet.VNetHdr) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	s.spawn(func() { <-s.ctx.Done(); ended = true })
	s.Close()
	if !ended {
		t.Error("Close did not wait")
	}
	if s.spawn(func() {}) {
		t.Error("something was started after Close")
	}
}

// A client's address and port are used once towards a pod, whether the stack has the connection or the relay.
func TestPortsAreOfBoth(t *testing.T) {
	s, pod := wired(t)
	at := netip.AddrPortFrom(podAddr, 80)
	l, err := pod.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	dial := func(client netip.AddrPort) {
		c, err := s.Dial(ctx, "tcp", client, at)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	onHost, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = onHost.Close() })
	join := func(client netip.AddrPort) {
		out, err := net.Dial("tcp", onHost.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = out.Close() })
		in, err := onHost.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.Join(ctx, in, client, at, nil) }()
	}
	seen := func() string {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c.RemoteAddr().String()
	}
	for i, both := range [][2]func(netip.AddrPort){{dial, join}, {join, dial}} {
		client := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), uint16(4000+i))
		both[0](client)
		if got := seen(); got != client.String() {
			t.Errorf("the pod saw %s, want %s", got, client)
		}
		both[1](client)
		if got := seen(); got == client.String() || !strings.HasPrefix(got, "198.51.100.7:") {
			t.Errorf("the pod saw %s besides %s", got, client)
		}
	}
}

// Who begins a connection through the stack is known before the relay is asked whether it has one with the same
// addresses and ports. The relay does the same (tcprelay.TestJoinAsksWhenKnown), so that of two who begin at once one
// sees the other.
func TestDialAsksWhenKnown(t *testing.T) {
	s, pod := wired(t)
	at := netip.AddrPortFrom(podAddr, 80)
	l, err := pod.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	client := netip.MustParseAddrPort("198.51.100.7:4000")
	asked, known := 0, 0
	s.carried = func(tuple *packet.Tuple) bool {
		asked++
		if s.keeping.has(tuple) {
			known++
		}
		return asked == 1 // a client is just being joined
	}
	c, err := s.Dial(ctx, "tcp", client, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if got := c.LocalAddr().(*net.TCPAddr).AddrPort(); got == client || got.Addr() != client.Addr() {
		t.Errorf("it was dialled from %s, whose port another connection has", got)
	}
	if asked < 2 || known != asked {
		t.Errorf("of %d questions to the relay, %d were asked when the connection was known", asked, known)
	}
	if s.keeping.has(&packet.Tuple{Src: packet.AddrFrom(at.Addr()), SrcPort: 80, Dst: packet.AddrFrom(client.Addr()), DstPort: 4000, Proto: packet.TCP}) {
		t.Error("the connection that was not made is still known")
	}
}
