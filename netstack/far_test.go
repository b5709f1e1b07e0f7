package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/test/await"
)

// joinFar joins a client of the host to an endpoint of another node, which sees it come from client. It returns the
// client's own end, and the SYN as the Link got it.
func (w *world) joinFar(client, to string) (net.Conn, netstacktest.Sent, chan error) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(await.Patience))
	accepted, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	if !w.path.Relayed(ap(to).Addr()) {
		w.t.Fatalf("no relay for %s", to)
	}
	done := make(chan error, 1)
	go func() {
		from := netip.AddrPort{}
		if client != "" {
			from = ap(client)
		}
		done <- w.path.Stack().Join(context.Background(), accepted.(*net.TCPConn), from, ap(to), nil)
	}()
	select {
	case s := <-w.link.Sent():
		return c, s, done
	case <-time.After(await.Patience):
		w.t.Fatalf("the link got nothing; %v", w.path.Stats())
	}
	panic("unreachable")
}

// A client of a host socket reaches a pod of another node through a relay, from its own address, encapsulated; and the
// node's own address where the other node takes no encapsulated packets, or the endpoint is that node.
func TestFarJoin(t *testing.T) {
	for _, c := range []struct {
		name, client, to string
		encap            bool
		seen             string // address
	}{
		{"a pod", "198.51.100.7:4000", "10.244.2.20:80", true, "198.51.100.7"},
		{"a stock node's pod", "198.51.100.7:4000", "10.244.9.20:80", false, "10.244.1.1"},
		{"another node", "", "172.31.0.12:80", false, "10.244.1.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			client, sent, done := w.joinFar(c.client, c.to)
			ip := sent.Packets[0]
			if (sent.Via != nil) != c.encap {
				t.Fatalf("encapsulated: %v, want %v", sent.Via != nil, c.encap)
			}
			if sent.Via != nil {
				ip, _, _ = packet.Decap(ip)
			}
			var p packet.Packet
			if p.ParseIP(ip) != packet.Good || p.Tuple.Src != packet.AddrFrom(netip.MustParseAddr(c.seen)) {
				t.Fatalf("the endpoint sees %s, want %s", p.Tuple.Src, c.seen)
			}
			// The endpoint answers, and says something.
			seq := binary.BigEndian.Uint32(p.IP[p.L4+4:])
			answer := p.Tuple.Reverse()
			say := func(flags uint8, at uint32, text string) {
				head := packet.TCPHeader{Seq: at, Ack: seq + 1, Flags: flags, Window: 60000}
				b := make([]byte, 40+len(text))
				n, vnet := packet.PutTCP(b, &answer, &head, len(text), 1380)
				copy(b[n:], text)
				var q packet.Packet
				if q.ParseIP(b) != packet.Good {
					t.Fatal("malformed")
				}
				q.VNet = vnet
				q.CompleteChecksum()
				if c.encap {
					b = encapsulateIP(b, "10.244.2.1", "10.244.1.1")
				}
				w.path.FromLink(sent.Peer, [][]byte{b})
			}
			say(packet.SYN|packet.ACK, 100, "")
			say(packet.PSH|packet.ACK, 101, "hello")
			got := make([]byte, 5)
			if _, err := io.ReadFull(client, got); err != nil || string(got) != "hello" {
				t.Fatalf("the client heard %q, %v", got, err)
			}
			say(packet.RST|packet.ACK, 106, "")
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// A client whose endpoint nobody has is given back as soon as the other node says so.
func TestFarNobody(t *testing.T) {
	w := newWorld(t)
	client, sent, done := w.joinFar("198.51.100.7:4000", "10.244.2.20:80")
	inner, _, _ := packet.Decap(sent.Packets[0])
	var syn packet.Packet
	if syn.ParseIP(inner) != packet.Good {
		t.Fatal("malformed")
	}
	b := make([]byte, 1500)
	n := packet.PutICMPError(b, &syn, packet.HostUnreachable, packet.AddrFrom(netip.MustParseAddr("10.244.2.20")), 0)
	w.path.FromLink(node2, [][]byte{encapsulateIP(b[:n], "10.244.2.1", "10.244.1.1")})
	var refused *tcprelay.RefusedError
	select {
	case err := <-done:
		if !errors.As(err, &refused) {
			t.Fatalf("Join returns %v, want the client, for whom another is asked", err)
		}
	case <-time.After(await.Patience):
		t.Fatalf("the connection goes on opening; %v", w.path.Stats())
	}
	_ = refused.Client.SetLinger(0)
	_ = refused.Client.Close()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client heard %v, want a reset by whoever has it", err)
	}
}
