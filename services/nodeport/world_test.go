package nodeport

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

var (
	node4 = netip.MustParseAddr("192.0.2.1")
	node6 = netip.MustParseAddr("2001:db8::1")
)

// world is the cluster as a Proxy sees it. Its backends are on loopback.
type world struct {
	mu     sync.Mutex
	picked packet.Choice
	states map[uint64]packet.BackendState
	tuples []packet.Tuple
	dials  []string // "network client"
	listen atomic.Int64

	released []string // guarded by mu
}

func (w *world) pick(t *packet.Tuple) packet.Choice {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tuples = append(w.tuples, *t)
	return w.picked
}

// choose makes the backend id at addr the ready one. Id 0 means that there is no backend.
func (w *world) choose(id uint64, addr net.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id == 0 {
		w.picked = packet.Choice{Kind: packet.NoEndpoints}
		return
	}
	w.picked = packet.Choice{Kind: packet.Picked, Backend: id, To: packet.EndpointFrom(netip.MustParseAddrPort(addr.String()))}
	w.states[id] = packet.BackendReady
}

func (w *world) state(id uint64, s packet.BackendState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.states[id] = s
}

func (w *world) stays(_ *packet.Tuple, c packet.Choice) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.states[c.Backend] >= packet.BackendServing
}

func (w *world) dial(ctx context.Context, network string, client, backend netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dials = append(w.dials, network+" "+client.String())
	w.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, network, backend.String())
}

func (w *world) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	w.listen.Add(1)
	return new(net.ListenConfig).Listen(ctx, network, address)
}

func (w *world) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	w.listen.Add(1)
	return new(net.ListenConfig).ListenPacket(ctx, network, address)
}

func (w *world) Release(network, address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.released = append(w.released, network+" "+address)
}

func nodeAddr(family netip.Addr) netip.Addr {
	if family.Is4() {
		return node4
	}
	return node6
}

func newWorld(t testing.TB, edit ...func(*Options)) (*world, *Proxy) {
	t.Helper()
	w := &world{states: map[uint64]packet.BackendState{}}
	opts := Options{Listen: w, Dial: w.dial, Door: newPlainDoor, Pick: w.pick, Stays: w.stays, NodeAddr: nodeAddr}
	for _, f := range edit {
		f(&opts)
	}
	p := New(opts)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		// What is adopted may outlive the Proxy.
		if st := p.Stats(); st.Sockets != 0 || st.Sessions != 0 || st.Conns != p.adopted.Load() {
			t.Errorf("closed, yet it holds %+v", st)
		}
	})
	return w, p
}

// tcpBackend starts a server that calls serve for every connection.
func tcpBackend(t testing.TB, serve func(*net.TCPConn)) net.Addr {
	t.Helper()
	return tcpBackendAt(t, "127.0.0.1", serve)
}

func tcpBackendAt(t testing.TB, host string, serve func(*net.TCPConn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); serve(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr()
}

// echo returns a server that sends its name, then echoes what it receives, and ends when its client does.
func echo(name string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		io.WriteString(c, name+"\n")
		io.Copy(c, c)
	}
}

// udpBackend starts a server that answers each datagram with its name and the datagram.
func udpBackend(t testing.TB, name string) net.Addr {
	t.Helper()
	return udpBackendAt(t, "127.0.0.1:0", name)
}

func udpBackendAt(t testing.TB, address, name string) net.Addr {
	t.Helper()
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo([]byte(name+":"+string(buf[:n])), from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr()
}

func spec(port uint16, proto packet.Proto) PortSpec {
	return PortSpec{Owner: "Service d/web", Port: port, Protocol: proto}
}

func dialTCP(t *testing.T, host string, port uint16) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, fmt.Sprint(port)), await.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(await.Patience))
	return c.(*net.TCPConn)
}
