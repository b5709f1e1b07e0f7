package nodeport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// dialFrom connects from an address of this host to a port of this host. It returns nil if the connection was refused.
func dialFrom(t *testing.T, network, from string, port uint16) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.Dial(network, net.JoinHostPort("127.0.0.1", fmt.Sprint(port)))
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// isServed reports whether the server behind a connection sends its name.
func isServed(c net.Conn) bool {
	if c == nil {
		return false
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	_, err := io.ReadFull(c, make([]byte, 3))
	return err == nil
}

// A client that keeps using new ports loses its own sessions, at any socket, and no other client loses one.
func TestUDPSessionsAreShared(t *testing.T) {
	w, p := newWorld(t, func(o *Options) { o.MaxSessions = 8 })
	w.choose(1, udpBackend(t, "one"))
	ports := []uint16{freeport.Of(t), freeport.Of(t)}
	p.Set([]PortSpec{spec(ports[0], packet.UDP), spec(ports[1], packet.UDP)})
	var quiet []net.Conn
	for i := range 3 {
		quiet = append(quiet, dialFrom(t, "udp", "127.0.0.2", ports[i%2]))
		exchange(t, quiet[i], "x")
	}
	for i := range 50 {
		exchange(t, dialFrom(t, "udp", "127.0.0.3", ports[i%2]), "x")
	}
	if n := p.Stats().Sessions; n != 8 {
		t.Errorf("%d sessions at two sockets, want 8", n)
	}
	dialled := func() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.dials) }
	before := dialled()
	for _, c := range quiet {
		exchange(t, c, "x")
	}
	if n := dialled() - before; n != 0 {
		t.Errorf("another client cost %d of 3 sessions", n)
	}
}

// More clients than sessions are all served. Each keeps its session until it is the one that was idle for longest.
func TestUDPManyClients(t *testing.T) {
	w, p := newWorld(t, func(o *Options) { o.MaxSessions = 8 })
	w.choose(1, udpBackend(t, "one"))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.UDP)})
	for i := range 30 {
		exchange(t, dialFrom(t, "udp", netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + i)}).String(), port), "x")
	}
	if n := p.Stats().Sessions; n != 8 {
		t.Errorf("%d sessions, want 8", n)
	}
}

// A client that keeps opening connections gets at most half of them, and another client still gets one. Connections
// that Join carries are not counted.
func TestTCPConnectionsAreShared(t *testing.T) {
	w, p := newWorld(t, func(o *Options) { o.MaxConns = 8 })
	w.choose(1, tcpBackend(t, echo("one")))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.TCP)})
	held, refused := 0, 0
	for range 20 {
		if isServed(dialFrom(t, "tcp", "127.0.0.3", port)) {
			held++
		} else {
			refused++
		}
	}
	if held != 4 || refused != 16 {
		t.Errorf("a client has %d connections and was refused %d, want 4 and 16", held, refused)
	}
	c := dialFrom(t, "tcp", "127.0.0.2", port)
	if !isServed(c) {
		t.Fatal("another client got none")
	}
	c.Close()
	await.Until(t, "its place is free again", func() bool { return p.Stats().Conns == 8 })
}
