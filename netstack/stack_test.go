package netstack

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

// pod puts a real gVisor stack behind one of the world's devices.
func (w *world) pod(name string) *netstacktest.Pod {
	w.t.Helper()
	ips := map[string][]string{"a": {"10.244.1.10", "fd00:10:244:1::10"}, "b": {"10.244.1.11", "fd00:10:244:1::11"}}[name]
	p, err := netstacktest.NewPod(w.devices[name], w.macs[name], tap.RouterMAC, 1420, addresstest.Addrs(ips...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.Close)
	return p
}

// echoServer sends its client's address on every connection, and then the bytes that it gets.
func echoServer(t *testing.T, l net.Listener) {
	t.Helper()
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, c.RemoteAddr().String()+"\n")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

func readLine(t *testing.T, c net.Conn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(await.Patience))
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("read: %v after %q", err, line)
		}
		if b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

func TestStackDial(t *testing.T) {
	for _, c := range []struct{ name, client, to, seen string }{
		{"as the stack", "", "10.244.1.10:80", "10.244.1.1"},
		{"as a client", "198.51.100.7:4000", "10.244.1.10:80", "198.51.100.7:4000"},
		{"as a client, IPv6", "[2001:db8::7]:4000", "[fd00:10:244:1::10]:80", "[2001:db8::7]:4000"},
		{"as a node", "172.31.0.11:0", "10.244.1.10:80", "172.31.0.11"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			l, err := w.pod("a").Listen(ap(c.to))
			if err != nil {
				t.Fatal(err)
			}
			echoServer(t, l)
			ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
			defer cancel()
			var client netip.AddrPort
			if c.client != "" {
				client = ap(c.client)
			}
			conn, err := w.path.Stack().Dial(ctx, "tcp", client, ap(c.to))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if seen := readLine(t, conn); len(seen) < len(c.seen) || seen[:len(c.seen)] != c.seen {
				t.Errorf("the pod saw %s, want %s", seen, c.seen)
			}
			// This is more than any window and superframe holds, so that both directions are segmented.
			sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
			go func() { _, _ = conn.Write(sent) }()
			got := make([]byte, len(sent))
			_ = conn.SetReadDeadline(time.Now().Add(await.Patience))
			if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("a megabyte did not come back whole: %v", err)
			}
		})
	}
}

func TestStackDialTwiceFromOneClientPort(t *testing.T) {
	w := newWorld(t)
	l, err := w.pod("a").Listen(ap("10.244.1.10:80"))
	if err != nil {
		t.Fatal(err)
	}
	echoServer(t, l)
	ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
	defer cancel()
	for i, want := range []bool{true, false} {
		conn, err := w.path.Stack().Dial(ctx, "tcp", ap("198.51.100.7:4000"), ap("10.244.1.10:80"))
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer conn.Close()
		seen := ap(readLine(t, conn))
		if seen.Addr().String() != "198.51.100.7" || (seen.Port() == 4000) != want {
			t.Errorf("connection %d: the pod saw %s", i, seen)
		}
	}
}

func TestStackListens(t *testing.T) {
	w := newWorld(t)
	l, err := w.path.Stack().Listen(ap("10.96.0.10:53"))
	if err != nil {
		t.Fatal(err)
	}
	echoServer(t, l)
	ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
	defer cancel()
	pod := w.pod("b")
	conn, err := pod.Dial(ctx, "tcp", ap("10.96.0.10:53"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if seen := readLine(t, conn); ap(seen).Addr().String() != "10.244.1.11" {
		t.Errorf("the stack saw %s, want the pod's address", seen)
	}
	if _, err := pod.Dial(ctx, "tcp", ap("10.244.1.1:9")); err == nil {
		t.Error("a port of the stack on which nobody listens took a connection")
	}
	if _, err := w.path.Stack().Listen(ap("0.0.0.0:53")); err == nil {
		t.Error("a listener on any address was allowed; it would catch what pods send outside")
	}
}

// TestPeerReachesNodeWithoutHostTAP: where a node has no host TAP, pods of other nodes reach its own addresses over
// host sockets, as its own pods do. An encapsulated client does not, and nothing beyond the node is reached.
func TestPeerReachesNodeWithoutHostTAP(t *testing.T) {
	w := newWorld(t)
	w.path.Detach("host")
	host, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	at := host.LocalAddr().(*net.UDPAddr).AddrPort()
	w.config.NodeAddrs = []netip.Addr{at.Addr()}
	w.set()
	w.from("node-2", datagram("10.244.2.10:1000", at.String()))
	buf := make([]byte, 100)
	_ = host.SetReadDeadline(time.Now().Add(await.Patience))
	n, client, err := host.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := host.WriteTo(buf[:n], client); err != nil {
		t.Fatal(err)
	}
	w.expect("link", "node-2 udp "+at.String()+" > 10.244.2.10:1000")
	w.from("node-2 encap", datagram("198.51.100.7:4000", at.String()))
	w.dropped(BadEncap)
	w.from("node-2", datagram("10.244.2.10:1000", "203.0.113.1:80"))
	w.dropped(NoRoute)
}
