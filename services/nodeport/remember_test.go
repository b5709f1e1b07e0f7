package nodeport

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// sessionMemory returns memory for so many sessions, and a func that opens it as the next process does.
func sessionMemory(t *testing.T, slots int) func() *memo.Memo {
	t.Helper()
	words := make([]uint64, memo.Size(slots)/8)
	return func() *memo.Memo {
		t.Helper()
		m, err := memo.Open(unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words)), SessionsKind)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
}

func used(m *memo.Memo) (n int) {
	m.Used(func(uint32) { n++ })
	return n
}

// Every session is read as it was written.
func TestRemembered(t *testing.T) {
	ap, a := netip.MustParseAddrPort, netip.MustParseAddr
	for _, r := range []remembered{
		{sessionKey: sessionKey{ap("192.0.2.7:5000"), a("192.0.2.1")}, at: key{"udp4", ap("0.0.0.0:30053")}, seen: 5000},
		{sessionKey: sessionKey{ap("192.0.2.7:5000"), a("192.0.2.1")}, at: key{"udp4", ap("192.0.2.1:53")}, seen: 61000},
		{sessionKey: sessionKey{ap("[2001:db8::7]:65535"), a("2001:db8::1")}, at: key{"udp6", ap("[::]:1")}, seen: 1},
		{sessionKey: sessionKey{ap("127.0.0.1:5000"), a("127.0.0.1")}, at: key{"udp4", ap("127.0.0.1:30053")}, seen: 2},
	} {
		for _, counted := range []bool{true, false} {
			r.choice = packet.Choice{Kind: packet.Picked, Backend: 1<<63 + 5, To: packet.EndpointFrom(ap("10.244.2.20:5353")), Counted: counted}
			f := r.fixed()
			if got, ok := readSession(&f); !ok || got != r {
				t.Errorf("%+v, %v; want %+v", got, ok, r)
			}
		}
	}
	for _, f := range []memo.Fixed{{}, {1, 2, 3, 4, 5, 6, 7, 8, 9}, {0, 0xffff_c0000201, 0, 0, 1 << 16}} {
		if r, ok := readSession(&f); ok {
			t.Errorf("%v is read as %+v", f, r)
		}
	}
}

// ask sends a datagram and returns the answer.
func ask(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return hearDatagram(t, c)
}

func hearDatagram(t *testing.T, c net.Conn) string {
	t.Helper()
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// A session goes on in the next Proxy: with its backend though another one would be chosen now, and with the port that
// the backend sees. What the backend says meanwhile reaches the client, who need not speak first. Sessions that ended,
// whose backend is gone or whose port is gone are forgotten.
func TestSessionsGoOn(t *testing.T) {
	memory := sessionMemory(t, 8)
	// dial is as the stack dials: from the client's port.
	local := func(ctx context.Context, network string, client, backend netip.AddrPort) (net.Conn, error) {
		at := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
		if client.Port() != 0 && client.Addr() == node4 {
			at.Port = int(client.Port())
		}
		return net.DialUDP("udp4", at, net.UDPAddrFromAddrPort(backend))
	}
	keeps := func(o *Options) { o.Sessions, o.Dial = memory(), local }
	first, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second := udpBackend(t, "second")

	w, p := newWorld(t, keeps)
	w.choose(1, first.LocalAddr())
	port := freeport.Of(t)
	if problems := p.Set([]PortSpec{spec(port, packet.UDP)}); len(problems) > 0 {
		t.Fatal(problems)
	}
	client := dialUDP(t, "127.0.0.1", port)
	if _, err := client.Write([]byte("one")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	_, seen, err := first.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if n := used(memory()); n != 1 {
		t.Fatalf("%d sessions are remembered, want 1", n)
	}

	w2, p2 := newWorld(t, keeps)
	w2.choose(1, first.LocalAddr())
	w2.choose(2, second)
	if problems := p2.Set([]PortSpec{spec(port, packet.UDP)}); len(problems) > 0 {
		t.Fatal(problems)
	}
	if _, err := first.WriteTo([]byte("late"), seen); err != nil {
		t.Fatal(err)
	}
	if got := hearDatagram(t, client); got != "late" {
		t.Errorf("the client heard %q", got)
	}
	if _, err := client.Write([]byte("two")); err != nil {
		t.Fatal(err)
	}
	if n, from, err := first.ReadFrom(buf); err != nil || string(buf[:n]) != "two" || from.String() != seen.String() {
		t.Errorf("the backend heard %q from %v, want the port %v; %v", buf[:n], from, seen, err)
	}
	// The backend is gone: the session ends with the client's next datagram, and another one begins.
	w2.state(1, packet.BackendGone)
	if got := ask(t, client, "three"); got != "second:three" {
		t.Errorf("the client heard %q", got)
	}
	await.Until(t, "one session is remembered", func() bool { return used(memory()) == 1 })
	if err := p2.Close(); err != nil {
		t.Fatal(err)
	}

	_, p3 := newWorld(t, keeps) // knows no backend
	p3.Set([]PortSpec{spec(port, packet.UDP)})
	if n := used(memory()); n != 0 || p3.Stats().Sessions != 0 {
		t.Errorf("%d sessions are remembered, and %d go on; want none", n, p3.Stats().Sessions)
	}
}

// A port that is gone takes its sessions along, and a session for which there is no slot ends with its Proxy.
func TestSessionsWithoutPort(t *testing.T) {
	memory := sessionMemory(t, 1)
	keeps := func(o *Options) { o.Sessions = memory() }
	w, p := newWorld(t, keeps)
	w.choose(1, udpBackend(t, "b"))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.UDP)})
	for range 2 {
		if got := ask(t, dialUDP(t, "127.0.0.1", port), "x"); got != "b:x" {
			t.Fatalf("heard %q", got)
		}
	}
	if n := used(memory()); n != 1 || p.Stats().Sessions != 2 {
		t.Errorf("%d of %d sessions are remembered, want 1 of 2", n, p.Stats().Sessions)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	_, next := newWorld(t, keeps)
	next.Set(nil)
	if n := used(memory()); n != 0 {
		t.Errorf("%d sessions are remembered for a port that is gone", n)
	}
}
