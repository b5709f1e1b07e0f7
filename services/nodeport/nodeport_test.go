package nodeport

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"tapestry.dev/tapestry/roll"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hosts returns the loopback addresses of this machine.
func hosts(t *testing.T) []string {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Log("this machine has no IPv6, so that only IPv4 is tried")
		return []string{"127.0.0.1"}
	}
	l.Close()
	return []string{"127.0.0.1", "::1"}
}

func TestTCP(t *testing.T) {
	w, p := newWorld(t)
	w.choose(1, tcpBackend(t, echo("one")))
	port := freeport.Of(t)
	if problems := p.Set([]PortSpec{spec(port, packet.TCP)}); len(problems) != 0 {
		t.Fatal(problems)
	}
	for _, host := range hosts(t) {
		c := dialTCP(t, host, port)
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
		go func() {
			c.Write(data)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		if want := append([]byte("one\n"), data...); sha256.Sum256(got) != sha256.Sum256(want) {
			t.Errorf("%s: %d bytes came back, want %d", host, len(got), len(want))
		}
	}
	await.Until(t, "connections are released", func() bool { return p.Stats().Conns == 0 })
	w.mu.Lock()
	defer w.mu.Unlock()
	if got, want := w.dials[0], "tcp "+node4.String()+":0"; got != want {
		t.Errorf("dialled as %q, want %q", got, want)
	}
	if tu := w.tuples[0]; tu.Src.Netip() != node4 || tu.SrcPort == 0 || tu.Dst.Netip() != node4 || tu.DstPort != port || tu.Proto != packet.TCP {
		t.Errorf("picked for %+v", tu)
	}
}

func TestTCPReset(t *testing.T) {
	tests := []struct {
		name string
		edit func(*Options)
		set  func(*world)
	}{
		{"no endpoint", func(*Options) {}, func(w *world) { w.choose(0, nil) }},
		{"forbidden client", func(o *Options) { o.Forbidden = func(a netip.Addr) bool { return a.IsLoopback() } },
			func(w *world) { w.choose(1, tcpBackend(t, echo("one"))) }},
		{"backend refuses", func(o *Options) {
			o.Dial = func(context.Context, string, netip.AddrPort, netip.AddrPort) (net.Conn, error) {
				return nil, syscall.ECONNREFUSED
			}
		}, func(w *world) { w.choose(1, tcpBackend(t, echo("one"))) }},
		{"backend resets", func(*Options) {}, func(w *world) {
			w.choose(1, tcpBackend(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.SetLinger(0) }))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, p := newWorld(t, tt.edit)
			tt.set(w)
			port := freeport.Of(t)
			p.Set([]PortSpec{spec(port, packet.TCP)})
			// The reset may come before connect(2) has ended.
			c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
			if err == nil {
				defer c.Close()
				c.SetDeadline(time.Now().Add(await.Patience))
				// Only the first call after the reset reports it.
				if _, err = c.Write([]byte("x")); err == nil {
					_, err = io.ReadAll(c)
				}
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v, want a reset", err)
			}
		})
	}
}

// TestChoose checks which client the backend sees, and what the Table is asked.
func TestChoose(t *testing.T) {
	lb := netip.MustParseAddrPort("198.51.100.7:443")
	tests := []struct {
		client, local, as, dst string
	}{
		{"203.0.113.5:999", "0.0.0.0:30080", "203.0.113.5:999", "192.0.2.1:30080"},
		{"[2001:db8:f::5]:999", "[::]:30080", "[2001:db8:f::5]:999", "[2001:db8::1]:30080"},
		{"127.0.0.1:999", "0.0.0.0:30080", "192.0.2.1:0", "192.0.2.1:30080"},
		{"[::1]:999", "[::]:30080", "[2001:db8::1]:0", "[2001:db8::1]:30080"},
		{"[fe80::1%eth0]:999", "[::]:30080", "[2001:db8::1]:0", "[2001:db8::1]:30080"},
		{"203.0.113.5:999", lb.String(), "203.0.113.5:999", lb.String()},
	}
	for _, tt := range tests {
		w, p := newWorld(t, func(o *Options) { o.Forbidden = netip.MustParsePrefix("10.0.0.0/8").Contains })
		w.choose(7, net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:8080")))
		f, ok := p.choose(netip.MustParseAddrPort(tt.client), place{local: netip.MustParseAddrPort(tt.local)}, packet.UDP)
		if !ok || f.client.String() != tt.as || f.backend.String() != "10.0.0.1:8080" || f.choice.Backend != 7 {
			t.Errorf("%s: %+v %v, want it to be %s", tt.client, f, ok, tt.as)
		}
		tu := w.tuples[0]
		if dst := (packet.Endpoint{Addr: tu.Dst, Port: tu.DstPort}).AddrPort().String(); dst != tt.dst || tu.SrcPort != 999 || tu.Proto != packet.UDP {
			t.Errorf("%s: asked for %+v, want destination %s", tt.client, tu, tt.dst)
		}
		if _, ok := p.choose(netip.MustParseAddrPort("10.0.0.9:1"), place{local: netip.MustParseAddrPort(tt.local)}, packet.UDP); ok {
			t.Error("a pod's address came from outside")
		}
	}
	// Where the PROXY protocol is spoken pods come, too. The Table is asked for the pod.
	w, p := newWorld(t, func(o *Options) { o.Forbidden = netip.MustParsePrefix("10.0.0.0/8").Contains })
	w.choose(7, net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:8080")))
	f, ok := p.choose(netip.MustParseAddrPort("10.0.0.9:999"), place{netip.MustParseAddrPort("192.0.2.1:80"), 2}, packet.TCP)
	if tu := w.tuples; !ok || f.client != netip.AddrPortFrom(node4, 0) || tu[0].Src.Netip() != netip.MustParseAddr("10.0.0.9") || tu[0].SrcPort != 999 {
		t.Errorf("a pod: %+v %v", f, ok)
	}
}

// TestTable uses a real Table with a real NodePort.
func TestTable(t *testing.T) {
	backend := netip.MustParseAddrPort(tcpBackend(t, echo("one")).String())
	port := freeport.Of(t)
	table, problems := services.NewTable(services.Config{
		NodeAddrs: []netip.Addr{node4, node6}, OwnAddrs: []netip.Addr{node4, node6},
		Services: roll.From([]*services.Service{{Namespace: "d", Name: "web", Ports: []services.Port{{Protocol: packet.TCP, Port: 80, NodePort: port}},
			Endpoints: []services.Endpoint{{Addr: backend.Addr(), Ready: true, Ports: []services.EndpointPort{{Protocol: packet.TCP, Port: backend.Port()}}}}}}),
	})
	if len(problems) != 0 {
		t.Fatal(problems)
	}
	_, p := newWorld(t, func(o *Options) { o.Pick, o.Stays = table.PickOnHost, table.StaysOnHost })
	if problems := p.Set(Ports(table)); len(problems) != 0 {
		t.Fatal(problems)
	}
	c := dialTCP(t, "127.0.0.1", port)
	c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "one\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestHostPorts has three pods with one port number: two at different addresses of the host, and one with the other
// protocol.
func TestHostPorts(t *testing.T) {
	port := freeport.Of(t)
	pod := func(name, host string, proto packet.Proto, to net.Addr) services.HostPort {
		return services.HostPort{Pod: "d/" + name, ID: name, Addr: netip.MustParseAddr(host), Port: port, Protocol: proto, To: netip.MustParseAddrPort(to.String())}
	}
	table, problems := services.NewTable(services.Config{
		NodeAddrs: []netip.Addr{node4, node6}, OwnAddrs: []netip.Addr{node4, node6},
		HostPorts: []services.HostPort{
			pod("one", "127.0.0.1", packet.TCP, tcpBackend(t, echo("one"))), pod("two", "127.0.0.2", packet.TCP, tcpBackend(t, echo("two"))),
			pod("three", "127.0.0.1", packet.UDP, udpBackend(t, "three")),
		},
	})
	if len(problems) != 0 {
		t.Fatal(problems)
	}
	w, p := newWorld(t, func(o *Options) { o.Pick, o.Stays = table.PickOnHost, table.StaysOnHost })
	if problems := p.Set(Ports(table)); len(problems) != 0 {
		t.Fatal(problems)
	}
	for host, want := range map[string]string{"127.0.0.1": "one\n", "127.0.0.2": "two\n"} {
		c := dialTCP(t, host, port)
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != want || err != nil {
			t.Errorf("%s: got %q, %v", host, got, err)
		}
	}
	if got := exchange(t, dialUDP(t, "127.0.0.1", port), "hello"); got != "three:hello" {
		t.Errorf("UDP: got %q", got)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.dials { // a pod cannot answer a loopback address
		if !strings.HasSuffix(d, " "+node4.String()+":0") {
			t.Errorf("a client is seen as %s", d)
		}
	}
}

func TestPortTaken(t *testing.T) {
	for _, proto := range []packet.Proto{packet.TCP, packet.UDP} {
		w, p := newWorld(t)
		w.choose(1, tcpBackend(t, echo("one")))
		taken, free := freeport.Of(t), freeport.Of(t)
		var other io.Closer
		var err error
		if proto == packet.TCP {
			other, err = net.Listen("tcp", fmt.Sprint(":", taken))
		} else {
			other, err = net.ListenPacket("udp", fmt.Sprint(":", taken))
		}
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		ports := []PortSpec{{Owner: "Service d/unlucky", Port: taken, Protocol: proto}, spec(free, packet.TCP)}
		problems := p.Set(ports)
		name := map[packet.Proto]string{packet.TCP: "TCP", packet.UDP: "UDP"}[proto]
		if len(problems) != 1 || problems[0].Object != "Service d/unlucky" ||
			!strings.Contains(problems[0].Message, fmt.Sprintf("NodePort %d/%s is taken", taken, name)) {
			t.Errorf("got %v", problems)
		}
		dialTCP(t, "127.0.0.1", free)
		if again := p.Set(ports); len(again) != 1 {
			t.Errorf("set again: %v", again)
		}
		other.Close()
		await.Until(t, "the port is opened once it is free", func() bool { return len(p.Problems()) == 0 })
		if proto == packet.TCP {
			dialTCP(t, "127.0.0.1", taken)
		}
	}
}

func TestProblems(t *testing.T) {
	_, p := newWorld(t)
	problems := p.Set([]PortSpec{
		{Owner: "Pod d/p", Addr: netip.MustParseAddr("203.0.113.201"), Port: 443, Protocol: packet.UDP},
		{Owner: "Service d/sctp", Port: 30000, Protocol: packet.SCTP},
		{Owner: "Service d/lb", Addr: netip.MustParseAddr("203.0.113.200"), Port: 443, Protocol: packet.TCP},
	})
	want := []string{"Pod d/p: hostPort 443/UDP at 203.0.113.201 is at an address that this host does not have",
		"Service d/lb: 203.0.113.200 port 443/TCP is at an address that this host does not have", "Service d/sctp: port 30000 is SCTP"}
	if len(problems) != len(want) {
		t.Fatal(problems)
	}
	for i := range want {
		if !strings.HasPrefix(problems[i].String(), want[i]) {
			t.Errorf("got %q, want %q", problems[i], want[i])
		}
	}
	if problems = p.Set(nil); len(problems) != 0 {
		t.Errorf("nothing wanted, yet %v", problems)
	}
}

// denied is a Listener that is not permitted to listen.
type denied struct{}

func (denied) Listen(context.Context, string, string) (net.Listener, error) {
	return nil, syscall.EACCES
}
func (denied) ListenPacket(context.Context, string, string) (net.PacketConn, error) {
	return nil, syscall.EAFNOSUPPORT
}

func (denied) Release(string, string) {}

func TestListenErrors(t *testing.T) {
	_, p := newWorld(t, func(o *Options) { o.Listen = denied{} })
	problems := p.Set([]PortSpec{spec(80, packet.TCP), spec(81, packet.UDP)})
	want := services.Problem{Object: "Service d/web", Message: "NodePort 80/TCP may not be opened by an unprivileged process; " +
		"lower net.ipv4.ip_unprivileged_port_start or give the Service a higher port"}
	if len(problems) != 1 || problems[0] != want {
		t.Errorf("got %q", problems)
	}
}

func TestSetKeepsAndDrains(t *testing.T) {
	w, p := newWorld(t)
	w.choose(1, tcpBackend(t, echo("one")))
	kept, removed := freeport.Of(t), freeport.Of(t)
	p.Set([]PortSpec{spec(kept, packet.TCP), spec(removed, packet.TCP)})
	opened := w.listen.Load()
	c := dialTCP(t, "127.0.0.1", removed)
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	p.Set([]PortSpec{spec(kept, packet.TCP)})
	if n := w.listen.Load(); n != opened {
		t.Errorf("%d sockets were opened again", n-opened)
	}
	if c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", removed)); err == nil {
		c.Close()
		t.Error("a removed port is still open")
	}
	dialTCP(t, "127.0.0.1", kept)
	io.WriteString(c, "still here")
	c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "still here" || err != nil {
		t.Errorf("the established connection got %q, %v", got, err)
	}
	// The next Proxy may want the other socket.
	want := []string{fmt.Sprint("tcp4 0.0.0.0:", removed), fmt.Sprint("tcp6 [::]:", removed)}
	p.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.released)
	if !slices.Equal(slices.Compact(w.released), want) {
		t.Errorf("released: %q, want %q", w.released, want)
	}
}

func TestFamilies(t *testing.T) {
	_, p := newWorld(t, func(o *Options) {
		o.NodeAddr = func(f netip.Addr) netip.Addr {
			if f.Is4() {
				return node4
			}
			return netip.Addr{}
		}
	})
	p.Set([]PortSpec{spec(freeport.Of(t), packet.TCP)})
	await.Until(t, "only the node's family is listened on", func() bool { return p.Stats().Sockets == 1 })
}

func TestCloseCuts(t *testing.T) {
	w, p := newWorld(t)
	w.choose(1, tcpBackend(t, echo("one")))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.TCP)})
	c := dialTCP(t, "127.0.0.1", port)
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a cut connection ended in order")
	}
	if problems := p.Set([]PortSpec{spec(port, packet.TCP)}); problems != nil || p.Stats() != (Stats{}) {
		t.Errorf("a closed Proxy listens: %v, %+v", problems, p.Stats())
	}
}

// TestCopyBuffered uses reads of sizes just below, at and above the sizes of the buffers.
func TestCopyBuffered(t *testing.T) {
	for _, piece := range []int{1, idleBuf - 1, idleBuf, idleBuf + 1, bulkBuf, 3*bulkBuf + 1} {
		data := bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7}, 100_000)
		var out bytes.Buffer
		if err := copyBuffered(&out, &pieces{data, piece}); err != nil || !bytes.Equal(out.Bytes(), data) {
			t.Errorf("pieces of %d: %d of %d bytes, %v", piece, out.Len(), len(data), err)
		}
	}
	broken := errors.New("broken")
	if err := copyBuffered(io.Discard, io.MultiReader(strings.NewReader("x"), errReader{broken})); err != broken {
		t.Errorf("got %v", err)
	}
}

type pieces struct {
	data []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.data[:min(p.size, len(p.data))])
	p.data = p.data[n:]
	return n, nil
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func BenchmarkCopy(b *testing.B) {
	data := make([]byte, 64<<20)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		copyBuffered(io.Discard, struct{ io.Reader }{bytes.NewReader(data)})
	}
}

// A port that finds no place among the sockets is told as a problem, those that are open stay, and it comes when one of
// them goes.
func TestSocketsAreBounded(t *testing.T) {
	w, p := newWorld(t, func(o *Options) { o.MaxSockets = 4 }) // two of each port
	w.choose(1, tcpBackend(t, echo("one")))
	ports := []uint16{freeport.Of(t), freeport.Of(t), freeport.Of(t)}
	if problems := p.Set([]PortSpec{spec(ports[1], packet.TCP), spec(ports[2], packet.TCP)}); len(problems) != 0 {
		t.Fatal(problems)
	}
	problems := p.Set([]PortSpec{spec(ports[0], packet.TCP), spec(ports[1], packet.TCP), spec(ports[2], packet.TCP)})
	if len(problems) != 1 || !strings.Contains(problems[0].Message, fmt.Sprint(ports[0])) || !strings.Contains(problems[0].Message, "LimitNOFILE") {
		t.Errorf("told is %v", problems)
	}
	dialTCP(t, "127.0.0.1", ports[1])
	dialTCP(t, "127.0.0.1", ports[2])
	if problems := p.Set([]PortSpec{spec(ports[0], packet.TCP), spec(ports[2], packet.TCP)}); len(problems) != 0 {
		t.Errorf("there is room, and told is %v", problems)
	}
	dialTCP(t, "127.0.0.1", ports[0])
}
