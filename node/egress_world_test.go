package node_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/node"
	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/test/await"
)

// egressWorld are two nodes with host TAPs, and the hosts' ends of these. The pods of the first that are named leave
// from addr.
type egressWorld struct {
	t       *testing.T
	addr    netip.Addr
	members []*nodetest.Member
	hosts   []*netstacktest.Device
	round   byte
}

func newEgressWorld(t *testing.T, addr netip.Addr, names ...string) *egressWorld {
	w := &egressWorld{t: t, addr: addr, members: nodetest.New(t, 2).Members}
	for i, m := range w.members {
		m.Exits = exit.Pods{Addresses: []netip.Addr{addr}, Held: []string{"default"}}
		if i == 0 {
			m.Exits.Addrs = map[string][]netip.Addr{}
			for _, name := range names {
				m.Exits.Addrs["default/"+name] = []netip.Addr{addr}
			}
		}
		m.RestartWith(func(h *node.Held) { h.DenyEgress = nil })
		w.hosts = append(w.hosts, m.AttachHostTAP())
	}
	return w
}

// by makes a member the gateway; a negative number is none.
func (w *egressWorld) by(gateway int) {
	name := ""
	if gateway >= 0 {
		name = w.members[gateway].Name
	}
	for _, m := range w.members {
		m.SetGateways(map[netip.Addr]string{w.addr: name})
	}
}

// answered sends on conn, and has the server answer what leaves by the gateway, until the pod has an answer. It returns
// the port that the server saw.
func (w *egressWorld) answered(conn net.Conn, gateway int, server netip.AddrPort) uint16 {
	w.t.Helper()
	w.round++
	for end := time.Now().Add(await.Patience); time.Now().Before(end); {
		_, _ = conn.Write([]byte{w.round})
		port := w.seen(gateway, server)
		if port == 0 {
			continue
		}
		w.hosts[gateway].Send(netstacktest.Spec{Src: server, Dst: netip.AddrPortFrom(w.addr, port), Proto: packet.UDP, Payload: []byte{w.round}}.Frame(tap.HostMAC, tap.RouterMAC))
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		answer := make([]byte, 8)
		if n, err := conn.Read(answer); err == nil && n == 1 && answer[0] == w.round {
			return port
		}
	}
	w.t.Fatalf("the pod is not answered; %v, %v", w.members[0].Packets(), w.members[1].Packets())
	return 0
}

// seen returns the port from which what was sent in this round comes to the server, 0 when it does not.
func (w *egressWorld) seen(gateway int, server netip.AddrPort) uint16 {
	w.t.Helper()
	late := time.After(20 * time.Millisecond)
	for {
		select {
		case f := <-w.hosts[gateway].Frames():
			var got packet.Packet
			if got.ParseFrame(f) != packet.Good || got.Tuple.Dst != packet.AddrFrom(server.Addr()) || got.IP[got.Payload] != w.round {
				continue
			}
			if got.Tuple.Src != packet.AddrFrom(w.addr) {
				w.t.Fatalf("%s sees %s, want %s", server, got.Tuple.Src, w.addr)
			}
			return got.Tuple.SrcPort
		case <-late:
			return 0
		}
	}
}

// TestEgressAddresses has a pod whose packets leave from an address by the other node, then by its own, then by none. A
// server outside sees one address and one port, and its answers come back by either.
func TestEgressAddresses(t *testing.T) {
	for _, e := range []struct{ addr, server string }{{"203.0.113.50", "198.51.100.1:53"}, {"2001:db8:1b::50", "[2001:db8:d::1]:53"}} {
		server := netip.MustParseAddrPort(e.server)
		w := newEgressWorld(t, netip.MustParseAddr(e.addr), "n1-3")
		home := w.members[0]
		conn := dial(t, home.Pod(3), "udp", server)
		var port uint16
		for round, gateway := range []int{1, 0, 1} {
			w.by(gateway)
			if got := w.answered(conn, gateway, server); round > 0 && got != port {
				t.Errorf("round %d: the server sees the port %d, want that of before, %d", round, got, port)
			} else {
				port = got
			}
		}
		before := home.Packets().Drops["no-exit"]
		w.by(-1)
		await.Until(t, "packets without a gateway to be refused", func() bool { _, _ = conn.Write([]byte("hello")); return home.Packets().Drops["no-exit"] > before })
	}
}

// TestEgressOverRestart starts the pod's node again, and the gateway. Nobody tells the next agents who the gateway is,
// and what was begun goes on from its port all the same. What begins then waits.
func TestEgressOverRestart(t *testing.T) {
	for _, gateway := range []int{0, 1} {
		server := netip.MustParseAddrPort("198.51.100.1:53")
		w := newEgressWorld(t, netip.MustParseAddr("203.0.113.50"), "n1-3")
		p := w.members[0].Pod(3)
		w.by(gateway)
		conn := dial(t, p, "udp", server)
		port := w.answered(conn, gateway, server)
		for i, m := range w.members {
			m.Restart()
			w.hosts[i] = m.AttachHostTAP()
			if got := w.answered(conn, gateway, server); got != port {
				t.Errorf("gateway %d, restart of %d: the server sees the port %d, want %d", gateway, i, got, port)
			}
		}
		late, before := dial(t, p, "udp", server), w.members[0].Packets().Drops["no-exit"]
		await.Until(t, "a new flow to wait", func() bool {
			_, _ = late.Write([]byte("hello"))
			return w.members[0].Packets().Drops["no-exit"] > before
		})
		w.by(gateway)
		w.answered(late, gateway, server)
	}
}
