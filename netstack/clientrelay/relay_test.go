package clientrelay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

const podMTU = 1420

var families = []struct{ name, host, backend, client string }{
	{"IPv4", "127.0.0.1", "10.244.1.10:8080", "192.0.2.9:7000"},
	{"IPv6", "::1", "[fd00:10:244:1::10]:8080", "[2001:db8::9]:7000"},
}

// world is a Relay, and the packets that it sends to backends.
type world struct {
	t      *testing.T
	relay  *Relay
	toPod  chan *packet.Packet
	mu     sync.Mutex // guards heard
	heard  []error
	served sync.WaitGroup
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, toPod: make(chan *packet.Packet, 10000)}
	poller, err := poll.New(2)
	if err != nil {
		t.Fatal(err)
	}
	w.relay = New(Options{
		Poller: poller, MTU: func() int { return podMTU },
		ClientFor: func(client, _ netip.AddrPort) (netip.AddrPort, error) { return client, nil },
		Send: func(ip []byte, vnet packet.VNetHdr) {
			p := new(packet.Packet)
			if fault := p.ParseIP(bytes.Clone(ip)); fault != packet.Good {
				t.Errorf("a packet for a pod: fault %d", fault)
				return
			}
			p.VNet = vnet
			w.toPod <- p
			clear(ip) // the relay must not rely on ip's bytes after Send
		},
	})
	t.Cleanup(func() {
		w.served.Wait()
		if err := poller.Close(); err != nil {
			t.Error(err)
		}
		if n := w.relay.count.Load(); n != 0 {
			t.Errorf("%d exchanges are left", n)
		}
	})
	return w
}

// open opens a Door at a host's address.
func (w *world) open(host string) (d *Door, at netip.AddrPort) {
	w.t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(host), 0)))
	if err != nil {
		w.t.Fatal(err)
	}
	at = local(c)
	if d, err = w.relay.Open(c); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { d.Close(); d.Close() })
	return d, at
}

// serve serves a Door until it is closed. Each client gets an Exchange, and is seen as said, or as itself.
func (w *world) serve(d *Door, at netip.AddrPort, backend, seen netip.AddrPort) {
	exchanges := map[netip.AddrPort]io.Closer{}
	w.served.Go(func() {
		err := d.Serve(func(client netip.AddrPort, local netip.Addr) io.Closer {
			if local != at.Addr() {
				w.t.Errorf("%s wrote to %s, want %s", client, local, at)
			}
			if x := exchanges[client]; x != nil {
				return x
			}
			as := seen
			if !as.IsValid() {
				as = client
			}
			x, err := d.Exchange(client, local, as, backend, func(err error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.heard = append(w.heard, err)
			})
			if err != nil {
				w.t.Error(err)
				return nil
			}
			exchanges[client] = x
			return x
		})
		if !errors.Is(err, net.ErrClosed) {
			w.t.Errorf("Serve ended with %v", err)
		}
		for _, x := range exchanges {
			x.Close()
			x.Close()
		}
	})
}

func (w *world) packet() *packet.Packet {
	w.t.Helper()
	select {
	case p := <-w.toPod:
		return p
	case <-netstacktest.GiveUp(w.t):
		w.t.Fatal("nothing came for the pod")
		return nil
	}
}

// datagrams returns the data of the next n datagrams for a pod, which must be of t and fit its MTU.
func (w *world) datagrams(t packet.Tuple, n int) (out [][]byte) {
	w.t.Helper()
	for len(out) < n {
		p := w.packet()
		if p.Tuple != t {
			w.t.Fatalf("a packet of %+v, want %+v", p.Tuple, t)
		}
		var cut packet.Segmenter
		cut.Reset(p, nil)
		if cut.Size() > podMTU {
			w.t.Fatalf("a packet of %d bytes for a pod with MTU %d", cut.Size(), podMTU)
		}
		for b := make([]byte, cut.Size()); ; {
			k := cut.Next(b)
			if k == 0 {
				break
			}
			var one packet.Packet
			if one.ParseIP(b[:k]) != packet.Good || !one.ChecksumOK() {
				w.t.Fatal("a segment is not right")
			}
			out = append(out, bytes.Clone(one.IP[one.Payload:]))
		}
	}
	return out
}

func dial(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(netstacktest.Until(t))
	return c
}

func local(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func say(t *testing.T, c *net.UDPConn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// answer makes the packet with which the pod answers p. size is that of the datagrams in a superframe; 0 means one.
func answer(t *testing.T, p *packet.Packet, data []byte, size int) *packet.Packet {
	t.Helper()
	a := &packet.Packet{}
	b := p.Tuple.Reverse()
	ip := netstacktest.Spec{Src: netip.AddrPortFrom(b.Src.Netip(), b.SrcPort), Dst: netip.AddrPortFrom(b.Dst.Netip(), b.DstPort), Proto: packet.UDP, Payload: data, Partial: true}.IP()
	if fault := a.ParseIP(ip); fault != packet.Good {
		t.Fatalf("an answer: fault %d", fault)
	}
	if a.VNet = (packet.VNetHdr{Flags: packet.NeedsCsum}); size > 0 {
		a.VNet.GSOType, a.VNet.GSOSize = packet.GSOUDPL4, uint16(size)
	}
	return a
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) + byte(i>>8) + seed
	}
	return b
}

// Datagrams of all sizes reach the backend from the client's own address, and its answers the client, whether they come
// one by one, as a superframe, or as what was coalesced from another node.
func TestExchange(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w, backend := newWorld(t), netip.MustParseAddrPort(f.backend)
			d, at := w.open(f.host)
			w.serve(d, at, backend, netip.AddrPort{})
			c := dial(t, at)
			me, pod := packet.EndpointFrom(local(c)), packet.EndpointFrom(backend)
			tuple := packet.Tuple{Src: me.Addr, SrcPort: me.Port, Dst: pod.Addr, DstPort: pod.Port, Proto: packet.UDP}
			var p *packet.Packet
			for i, n := range []int{100, 100, 0, 1, podMTU - 48} {
				say(t, c, pattern(n, byte(i)))
				if got := w.datagrams(tuple, 1); !bytes.Equal(got[0], pattern(n, byte(i))) {
					t.Fatalf("datagram %d: %d bytes arrived, want %d", i, len(got[0]), n)
				}
			}
			say(t, c, pattern(10, 0))
			p = w.packet()

			hear := func(what string, want []byte) {
				t.Helper()
				b := make([]byte, 65535)
				n, err := c.Read(b)
				if err != nil || !bytes.Equal(b[:n], want) {
					t.Fatalf("%s: %d bytes, %v; want %d", what, n, err, len(want))
				}
			}
			deliver := func(a *packet.Packet) {
				t.Helper()
				if !w.relay.Deliver(a) {
					t.Fatal("an answer belongs to nobody")
				}
			}
			for _, n := range []int{0, 1, 1000, 3000} {
				deliver(answer(t, p, pattern(n, 9), 0))
				hear("one answer", pattern(n, 9))
			}
			data := pattern(2500, 3)
			deliver(answer(t, p, data, 1000))
			for _, part := range [][]byte{data[:1000], data[1000:2000], data[2000:]} {
				hear("a superframe", part)
			}
			joined := answer(t, p, data[:1000], 1000)
			joined.Tail = [][]byte{data[1000:2000], data[2000:]}
			deliver(joined)
			for _, part := range [][]byte{data[:1000], data[1000:2000], data[2000:]} {
				hear("coalesced datagrams", part)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.heard) != 6 || errors.Join(w.heard...) != nil {
				t.Errorf("the host heard of %v", w.heard)
			}
		})
	}
}

// What a client sends in a burst arrives whole and in order, in fewer packets than datagrams. Datagrams beyond the MTU
// come in fragments.
func TestBurst(t *testing.T) {
	w, backend := newWorld(t), netip.MustParseAddrPort(families[0].backend)
	d, at := w.open(families[0].host) // not served yet, so that all wait in the socket
	c := dial(t, at)
	const several = 48
	for i := range several {
		say(t, c, pattern(1000, byte(i)))
	}
	w.serve(d, at, backend, netip.AddrPort{})
	packets := 0
	for i := 0; i < several; packets++ {
		p := w.packet()
		for b := p.IP[p.Payload:]; len(b) > 0; b, i = b[1000:], i+1 {
			if !bytes.Equal(b[:1000], pattern(1000, byte(i))) {
				t.Fatalf("datagram %d is another one", i)
			}
		}
	}
	if packets > several/8 {
		t.Errorf("%d datagrams came in %d packets", several, packets)
	}
	say(t, c, pattern(3000, 1))
	for got, n := 0, 0; got < 3008; n++ {
		p := w.packet()
		if p.Frag == packet.NoFrag || p.Len() > podMTU {
			t.Fatalf("packet %d has %d bytes, and is no fragment", n, p.Len())
		}
		got += p.Len() - 20
	}
}

// icmp returns the ICMP error that the backend, or a router with that MTU, sends for p.
func icmp(t *testing.T, p *packet.Packet, kind packet.ICMPError, mtu int) *packet.Packet {
	t.Helper()
	b := make([]byte, 1280)
	n := packet.PutICMPError(b, p, kind, p.Tuple.Dst, mtu)
	e := new(packet.Packet)
	if e.ParseIP(b[:n]) != packet.Good {
		t.Fatal("no ICMP error")
	}
	return e
}

// A backend that refuses is told to the host, and a narrow way is remembered, but no narrower than it can be.
func TestFaults(t *testing.T) {
	for _, f := range families {
		w, backend := newWorld(t), netip.MustParseAddrPort(f.backend)
		d, at := w.open(f.host)
		w.serve(d, at, backend, netip.MustParseAddrPort(f.client)) // no error is sent about what came from loopback
		c := dial(t, at)
		say(t, c, pattern(1370, 1))
		p := w.packet()
		p.VNet = packet.VNetHdr{}
		for _, told := range []struct{ mtu, want int }{{1300, 1300}, {1, map[bool]int{true: least4, false: least6}[backend.Addr().Is4()]}} {
			if !w.relay.Deliver(icmp(t, p, packet.TooBig, told.mtu)) {
				t.Fatalf("%s: an error about a datagram belongs to nobody", f.name)
			}
			say(t, c, pattern(1370, 1))
			longest := 0
			for got := 0; got < 1378; {
				q := w.packet()
				if q.Frag == packet.NoFrag {
					t.Fatalf("%s: a packet of %d bytes is no fragment", f.name, q.Len())
				}
				longest = max(longest, q.Len())
				head := 20
				if !backend.Addr().Is4() {
					head = 48
				}
				got += q.Len() - head
			}
			if longest > told.want || longest < told.want-8 {
				t.Errorf("%s: with an MTU of %d the longest packet has %d bytes, want %d", f.name, told.mtu, longest, told.want)
			}
		}
		if !w.relay.Deliver(icmp(t, p, packet.PortUnreachable, 0)) {
			t.Fatalf("%s: a refusal belongs to nobody", f.name)
		}
		w.mu.Lock()
		if len(w.heard) != 1 || w.heard[0] == nil {
			t.Errorf("%s: the host heard of %v, want one refusal", f.name, w.heard)
		}
		w.mu.Unlock()
		stranger := *p
		stranger.Tuple.SrcPort++
		stranger.IP = bytes.Clone(p.IP)
		be.PutUint16(stranger.IP[p.L4:], stranger.Tuple.SrcPort)
		if w.relay.Deliver(icmp(t, &stranger, packet.PortUnreachable, 0)) || w.relay.Deliver(answer(t, &stranger, nil, 0)) {
			t.Errorf("%s: what nobody asked for belongs to somebody", f.name)
		}
	}
}

// Two clients that a backend would see at one address and port get different ports.
func TestPortInUse(t *testing.T) {
	w, backend := newWorld(t), netip.MustParseAddrPort(families[0].backend)
	d, at := w.open(families[0].host)
	w.serve(d, at, backend, netip.MustParseAddrPort(families[0].client))
	ports := map[uint16]bool{}
	for i := range 3 {
		say(t, dial(t, at), []byte{byte(i)})
		ports[w.packet().Tuple.SrcPort] = true
	}
	if len(ports) != 3 || !ports[7000] {
		t.Errorf("three clients have the ports %v", ports)
	}
}

// A datagram of a known client allocates nothing, and neither does an answer.
func TestAllocs(t *testing.T) {
	w, backend := newWorld(t), netip.MustParseAddrPort(families[0].backend)
	w.relay.out.Send = func([]byte, packet.VNetHdr) {}
	d, at := w.open(families[0].host)
	c := dial(t, at)
	x, err := d.Exchange(local(c), at.Addr(), local(c), backend, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	b := d.r.batches.Get()
	defer d.r.batches.Put(b)
	data := pattern(100, 1)
	ask := func(netip.AddrPort, netip.Addr) io.Closer { return x }
	if n := testing.AllocsPerRun(100, func() {
		_, _ = c.Write(data)
		if n, errno := b.Receive(d.fd, true, 1); n != 1 {
			t.Fatalf("received %d, %v", n, errno)
		}
		d.pass(b, 1, ask)
	}); n != 0 {
		t.Errorf("%v allocations for a datagram", n)
	}
	tuple := x.(*Exchange).answers.Reverse()
	reply := answer(t, &packet.Packet{Tuple: tuple}, data, 0)
	if n := testing.AllocsPerRun(50, func() { w.relay.Deliver(reply) }); n != 0 {
		t.Errorf("%v allocations for an answer", n)
	}
}
