package nodeport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

func dialUDP(t *testing.T, host string, port uint16) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func exchange(t *testing.T, c net.Conn, say string) string {
	t.Helper()
	if _, err := c.Write([]byte(say)); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(await.Patience))
	buf := make([]byte, maxDatagram)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestUDP(t *testing.T) {
	w, p := newWorld(t)
	w.choose(1, udpBackend(t, "one"))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.UDP)})
	// A connected socket receives answers only from the address to which it wrote.
	for _, host := range append(hosts(t), "127.0.0.2") {
		c := dialUDP(t, host, port)
		for _, say := range []string{"hello", "", strings.Repeat("x", 30000)} {
			if got := exchange(t, c, say); got != "one:"+say {
				t.Errorf("%s: got %d bytes, want %d", host, len(got), len(say)+4)
			}
		}
	}
	if n, want := p.Stats().Sessions, int64(len(hosts(t))+1); n != want {
		t.Errorf("%d sessions, want %d", n, want)
	}
}

func TestUDPMoves(t *testing.T) {
	w, p := newWorld(t)
	one, two := udpBackend(t, "one"), udpBackend(t, "two")
	w.choose(1, one)
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.UDP)})
	c := dialUDP(t, "127.0.0.1", port)
	if got := exchange(t, c, "a"); got != "one:a" {
		t.Fatal(got)
	}
	w.choose(2, two)
	if got := exchange(t, c, "b"); got != "one:b" {
		t.Errorf("a session left its ready backend: %q", got)
	}
	w.state(1, packet.BackendServing)
	if got := exchange(t, c, "c"); got != "one:c" {
		t.Errorf("a session left its backend, which ends but serves: %q", got)
	}
	for _, s := range []packet.BackendState{packet.BackendDraining, packet.BackendGone} {
		w.choose(1, one)
		w.state(2, s)
		exchange(t, c, "c")
		w.choose(2, two)
		w.state(1, s)
		if got := exchange(t, c, "d"); got != "two:d" {
			t.Errorf("backend in state %d was not left: %q", s, got)
		}
	}
	w.choose(0, nil)
	w.state(2, packet.BackendGone)
	c.Write([]byte("lost"))
	await.Until(t, "a session without backend ends", func() bool { return p.Stats().Sessions == 0 })
}

// TestUDPFollowsItsPort: a client that goes on from one port is served by whoever has the node port now, even if the
// backend before lives and serves elsewhere (kubernetes/kubernetes#139628).
func TestUDPFollowsItsPort(t *testing.T) {
	config := func(ports [2]uint16, backends [2]net.Addr) services.Config {
		c := tableConfig("n")
		for i, name := range []string{"one", "two"} {
			at := netip.MustParseAddrPort(backends[i].String())
			c.Services = c.Services.Append(&services.Service{
				Namespace: "d", Name: name, Ports: []services.Port{{Protocol: packet.UDP, Port: 80, NodePort: ports[i]}},
				Endpoints: []services.Endpoint{{Addr: at.Addr(), ID: name, Node: "n", Ready: true, Serving: true,
					Ports: []services.EndpointPort{{Protocol: packet.UDP, Port: at.Port()}}}},
			})
		}
		return c
	}
	backends := [2]net.Addr{udpBackend(t, "one"), udpBackend(t, "two")}
	ports := [2]uint16{freeport.Of(t), freeport.Of(t)}
	var table atomic.Pointer[services.Table]
	_, p := newWorld(t, func(o *Options) {
		o.Pick = func(tu *packet.Tuple) packet.Choice { return table.Load().PickOnHost(tu) }
		o.Stays = func(tu *packet.Tuple, c packet.Choice) bool { return table.Load().StaysOnHost(tu, c) }
	})
	set := func(ports [2]uint16) {
		next, _ := table.Load().Update(config(ports, backends))
		table.Store(next)
		if problems := p.Set(Ports(next)); len(problems) != 0 {
			t.Fatal(problems)
		}
	}
	set(ports)
	for _, host := range []string{"127.0.0.1", "127.0.0.2"} {
		c := dialUDP(t, host, ports[0])
		if got := exchange(t, c, "a"); got != "one:a" {
			t.Fatal(got)
		}
		set([2]uint16{ports[1], ports[0]})
		if got := exchange(t, c, "b"); got != "two:b" {
			t.Errorf("%s, after the Services swapped their ports: %q", host, got)
		}
		set(ports)
		if got := exchange(t, c, "c"); got != "one:c" {
			t.Errorf("%s, after they swapped them again: %q", host, got)
		}
	}
}

func TestUDPIdle(t *testing.T) {
	w, p := newWorld(t, func(o *Options) { o.IdleTimeout = 50 * time.Millisecond })
	w.choose(1, udpBackend(t, "one"))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.UDP)})
	c := dialUDP(t, "127.0.0.1", port)
	for range 2 {
		// On a busy machine a session may end before its answer comes.
		await.Until(t, "the backend answers", func() bool {
			c.Write([]byte("a"))
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			buf := make([]byte, 16)
			n, _ := c.Read(buf)
			return string(buf[:n]) == "one:a"
		})
		await.Until(t, "the session ends", func() bool { return p.Stats().Sessions == 0 })
	}
}

func TestUDPBound(t *testing.T) {
	w, p := newWorld(t, func(o *Options) { o.MaxSessions = 2 })
	w.choose(1, udpBackend(t, "one"))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.UDP)})
	var clients []net.Conn
	for range 2 {
		clients = append(clients, dialUDP(t, "127.0.0.1", port))
		exchange(t, clients[len(clients)-1], "x")
	}
	dialled := func() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.dials) }
	exchange(t, clients[0], "x") // now the second is idle for longest
	exchange(t, dialUDP(t, "127.0.0.1", port), "x")
	if n := p.Stats().Sessions; n != 2 {
		t.Errorf("%d sessions, want 2", n)
	}
	before := dialled()
	exchange(t, clients[0], "x")
	if n := dialled(); n != before {
		t.Error("the busy session was evicted")
	}
	exchange(t, clients[1], "x")
	if n := dialled(); n != before+1 {
		t.Error("the idle session was not evicted")
	}
}

func TestUDPAllocs(t *testing.T) {
	w, p := newWorld(t)
	w.choose(1, udpBackend(t, "one"))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.UDP)})
	c := dialUDP(t, "127.0.0.1", port)
	exchange(t, c, "x")
	p.mu.Lock()
	s := p.servers[key{"udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port)}]
	p.mu.Unlock()
	k := sessionKey{netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddr("127.0.0.1")}
	if n := testing.AllocsPerRun(100, func() {
		if s.session(udpSocket{}, k) == nil {
			t.Fatal("no session")
		}
	}); n != 0 {
		t.Errorf("%v allocations for a datagram of a known client", n)
	}
}

// exchangeDoor carries everything by exchanges, and is what the backend says.
type exchangeDoor struct {
	Door
	heard func(error) // of the last exchange
	open  atomic.Int32
}

func (d *exchangeDoor) Exchange(_ netip.AddrPort, _ netip.Addr, _, _ netip.AddrPort, heard func(error)) (io.Closer, error) {
	d.heard = heard
	d.open.Add(1)
	return ender(func() { d.open.Add(-1) }), nil
}

type ender func()

func (e ender) Close() error { e(); return nil }

// A session that is carried by an exchange ends when it is idle, when the backend refuses, and when its backend leaves,
// and each end is told once.
func TestExchanges(t *testing.T) { synctest.Test(t, exchanges) }

func exchanges(t *testing.T) {
	var ends, answers atomic.Int32
	const idle = time.Minute
	w, p := newWorld(t, func(o *Options) {
		o.IdleTimeout = idle
		o.Begin = func(*packet.Tuple, packet.Choice) Use { return countedUse{&answers, &ends} }
	})
	d := &exchangeDoor{}
	s := newServer(p, key{"udp4", netip.MustParseAddrPort("192.0.2.1:30000")}, spec(30000, packet.UDP))
	k := sessionKey{netip.MustParseAddrPort("198.51.100.1:7"), netip.MustParseAddr("192.0.2.1")}
	ask := func() *session { return s.session(udpSocket{d, new(sync.WaitGroup)}, k) }
	w.choose(1, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 80})

	first := ask()
	time.Sleep(idle * 2 / 3)
	if ask() != first {
		t.Fatal("a client's datagram began another session")
	}
	time.Sleep(idle * 2 / 3)
	d.heard(nil)
	d.heard(nil)
	time.Sleep(idle * 2 / 3) // the answer has prolonged it
	if ask() != first || answers.Load() != 1 {
		t.Fatalf("the session is another one, or %d first answers were told", answers.Load())
	}
	time.Sleep(idle + time.Second)
	synctest.Wait()
	if n := p.Stats().Sessions; n != 0 || d.open.Load() != 0 || ends.Load() != 1 {
		t.Fatalf("idle, yet %d sessions and %d exchanges are there, and %d ends were told", n, d.open.Load(), ends.Load())
	}

	second := ask()
	d.heard(errors.New("refused"))
	d.heard(errors.New("refused"))
	if ends.Load() != 2 || d.open.Load() != 0 || ask() == second {
		t.Fatal("a session went on with a backend that refuses")
	}
	w.choose(2, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 80})
	w.state(1, packet.BackendGone)
	if third := ask(); third.choice.Backend != 2 || ends.Load() != 3 || d.open.Load() != 1 {
		t.Fatalf("a session went on with a backend that is gone")
	}
	s.drop(s.all()[0])
	if p.Stats().Sessions != 0 || ends.Load() != 4 || d.open.Load() != 0 {
		t.Error("a session did not end with its socket")
	}
}

type countedUse struct{ answers, ends *atomic.Int32 }

func (u countedUse) Answered() { u.answers.Add(1) }
func (u countedUse) Refused()  {}
func (u countedUse) Resumed()  {}
func (u countedUse) End()      { u.ends.Add(1) }
