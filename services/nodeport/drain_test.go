package nodeport

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// shelf keeps listening sockets for the next Proxy.
type shelf struct {
	*world
	mu   sync.Mutex
	kept map[string]*os.File
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{kept: map[string]*os.File{}}
	t.Cleanup(func() {
		for _, f := range s.kept {
			f.Close()
		}
	})
	return s
}

func (s *shelf) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.kept[address]; f != nil {
		return net.FileListener(f)
	}
	l, err := s.world.Listen(ctx, network, address)
	if err == nil {
		s.kept[address], err = l.(*net.TCPListener).File()
	}
	return l, err
}

// joinBy returns a Join that carries all connections.
func joinBy(dial func(context.Context, string, netip.AddrPort, netip.AddrPort) (net.Conn, error)) func(context.Context, *net.TCPConn, netip.AddrPort, netip.AddrPort, func(bool)) (*net.TCPConn, bool) {
	return func(ctx context.Context, c *net.TCPConn, client, backend netip.AddrPort, answered func(bool)) (*net.TCPConn, bool) {
		b, err := dial(ctx, "tcp", client, backend)
		if err != nil {
			return c, false
		}
		answered(true)
		splice(c, b)
		return nil, false
	}
}

// addrPortOf returns the address of one end of a TCP connection.
func addrPortOf(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

// say sends text and wants it back.
func say(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := c.Write([]byte(text)); err != nil {
		t.Error(err)
	} else if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Errorf("%q was sent, and %q came back: %v", text, got, err)
	}
}

// TestDrain: connections that end with the Proxy go on while it drains, also those that are half closed. Who connects
// meanwhile is served by the next Proxy where the PROXY protocol is spoken, and by this one elsewhere.
func TestDrain(t *testing.T) {
	kept := newShelf(t)
	w, p := newWorld(t, func(o *Options) {
		kept.world = o.Listen.(*world)
		o.Listen = kept
		o.Join = joinBy(o.Dial)
	})
	finish := make(chan struct{})
	finished := sync.OnceFunc(func() { close(finish) })
	w.choose(1, tcpBackend(t, func(c *net.TCPConn) {
		io.Copy(c, c)
		<-finish // the client has said everything
		io.WriteString(c, "the rest")
	}))
	t.Cleanup(finished)
	headed, plain := spec(freeport.Of(t), packet.TCP), spec(freeport.Of(t), packet.TCP)
	headed.Proxy = 1
	headed.Addr, plain.Addr = netip.IPv4Unspecified(), netip.IPv4Unspecified()
	ports := []PortSpec{headed, plain}
	if problems := p.Set(ports); len(problems) > 0 {
		t.Fatal(problems)
	}
	begun := func() *net.TCPConn {
		c := dialTCP(t, "127.0.0.1", headed.Port)
		head := headerOf(1, addrPortOf(c.LocalAddr()), addrPortOf(c.RemoteAddr()))
		if _, err := io.ReadFull(c, make([]byte, len(head))); err != nil {
			t.Fatal(err)
		}
		return c
	}
	whole, half, carried := begun(), begun(), dialTCP(t, "127.0.0.1", plain.Port)
	say(t, half, "before")
	say(t, carried, "before")
	half.CloseWrite()

	drained := make(chan int, 1)
	go func() { drained <- p.Drain(t.Context()) }()
	await.Until(t, "the socket with the PROXY protocol is closed", func() bool { return p.Stats().Sockets == 1 })
	say(t, whole, "while it drains")
	waiting := dialTCP(t, "127.0.0.1", headed.Port)
	say(t, dialTCP(t, "127.0.0.1", plain.Port), "one who comes")
	select {
	case left := <-drained:
		t.Fatalf("it has drained with %d left, and two connections go on", left)
	default:
	}
	finished()
	whole.CloseWrite()
	for _, c := range []*net.TCPConn{whole, half} {
		if rest, err := io.ReadAll(c); err != nil || string(rest) != "the rest" {
			t.Errorf("a connection ended with %q, %v", rest, err)
		}
	}
	if left := <-drained; left != 0 {
		t.Errorf("%d connections are left", left)
	}
	p.Close()

	next, q := newWorld(t, func(o *Options) { o.Listen = kept })
	next.choose(1, tcpBackend(t, echo("next")))
	q.Set(ports)
	head := headerOf(1, addrPortOf(waiting.LocalAddr()), addrPortOf(waiting.RemoteAddr()))
	waiting.CloseWrite()
	if got, err := io.ReadAll(waiting); err != nil || string(got) != "next\n"+head {
		t.Errorf("who waited for the next Proxy got %q, %v", got, err)
	}
}

// TestDrainTime: what has not finished in time is counted, and reset by Close.
func TestDrainTime(t *testing.T) {
	w, p := newWorld(t)
	w.choose(1, tcpBackend(t, echo("one")))
	at := spec(freeport.Of(t), packet.TCP)
	at.Proxy = 2
	p.Set([]PortSpec{at})
	c := dialTCP(t, "127.0.0.1", at.Port)
	if _, err := io.ReadFull(c, make([]byte, len("one\n"))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if left := p.Drain(ctx); left != 1 {
		t.Errorf("%d connections are left, want 1", left)
	}
	p.Close()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a connection that was cut ended in order")
	}
	if left := p.Drain(t.Context()); left != 0 {
		t.Errorf("%d connections are left of a closed Proxy", left)
	}
}
