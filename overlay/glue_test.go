package overlay

import (
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

// quietMesh returns a Mesh without device and goroutines, with one peer that has a session. It is enough for Send and
// for the tunnel's Read and Write.
func quietMesh(receive func(uint64, [][]byte)) *Mesh {
	m := &Mesh{o: Options{Receive: receive, UnderlayMTU: 1500}, ring: newRing(nil), div: newDiverter(nil), wakeProber: make(chan struct{}, 1)}
	p := &peer{id: 2, key: PublicKey{1}}
	p.live.Store(true)
	m.table.Store(newTable([]*peer{p}, []Peer{{ID: 2, Prefixes: podCIDRs(2)}}))
	m.stackAddrs = []packet.Addr{packet.AddrFrom(stackAddrs(1)[0])}
	m.tun = newTunnel(m)
	return m
}

// wireguard reads from the tunnel in place of the device.
type wireguard struct {
	bufs  [][]byte
	sizes []int
}

func newWireguard() *wireguard {
	w := &wireguard{bufs: make([][]byte, tunnelBatch), sizes: make([]int, tunnelBatch)}
	for i := range w.bufs {
		w.bufs[i] = make([]byte, 65535)
	}
	return w
}

// read reads until n packets came, and tells the Mesh that they were sent.
func (w *wireguard) read(t testing.TB, m *Mesh, n int) {
	for n > 0 {
		k, err := m.tun.Read(w.bufs, w.sizes, 16)
		if err != nil {
			t.Fatal(err)
		}
		m.noteSent(k)
		n -= k
	}
}

func TestGlueAllocatesNothing(t *testing.T) {
	m := quietMesh(func(uint64, [][]byte) {})
	w := newWireguard()
	p := frame(t, packet.TCP, pod4(1, 5), pod4(2, 5), 60000, 1380)
	full, n := p.Buf, len(p.Buf)
	if a := testing.AllocsPerRun(100, func() {
		m.Send(p, 2, nil)
		w.read(t, m, 44)
		p.Buf = p.Buf[:n]
		if p.ParseFrame(full[:n]) != packet.Good {
			t.Fatal("the frame changed")
		}
	}); a != 0 {
		t.Errorf("sending a superframe allocates %v times", a)
	}
	receive, _ := received(t, m)
	if a := testing.AllocsPerRun(100, receive); a != 0 {
		t.Errorf("receiving a batch allocates %v times", a)
	}
}

// received returns a function that writes a batch of 44 packets of peer 2 to the tunnel, as WireGuard does, and their
// size in bytes.
func received(t testing.TB, m *Mesh) (write func(), size int) {
	in := make([][]byte, 44)
	for i := range in {
		one := frame(t, packet.TCP, pod4(2, 1+i%5), pod4(1, 5), 1380, 1380)
		in[i] = append(make([]byte, 16), one.IP...)
		size += len(one.IP)
	}
	batch := make([][]byte, len(in))
	return func() {
		copy(batch, in)
		if _, err := m.tun.Write(batch, 16); err != nil {
			t.Fatal(err)
		}
	}, size
}

// While WireGuard holds as many packets as it may, the reader waits. It goes on when there is room.
func TestCongestion(t *testing.T) {
	m := quietMesh(func(uint64, [][]byte) {})
	w := newWireguard()
	got := make(chan int)
	go func() {
		total := 0
		for range 30 {
			n, err := m.tun.Read(w.bufs, w.sizes, 16)
			if err != nil {
				break
			}
			total += n
		}
		got <- total
	}()
	for range 30 {
		m.Send(frame(t, packet.TCP, pod4(1, 5), pod4(2, 5), 60000, 1380), 2, nil)
	}
	await.Until(t, "a waiting reader", func() bool { return m.inflight.Load() >= inflightMax && readerWaits(m) })
	held := m.inflight.Load()
	if held > inflightMax+tunnelBatch {
		t.Errorf("%d packets inside WireGuard", held)
	}
	for {
		m.noteSent(44)
		select {
		case n := <-got:
			if n != 30*44 {
				t.Errorf("%d packets, want %d", n, 30*44)
			}
			return
		default:
		}
	}
}

func readerWaits(m *Mesh) bool {
	m.ring.mu.Lock()
	defer m.ring.mu.Unlock()
	return m.ring.waiting
}

func TestEchoComesBack(t *testing.T) {
	for _, gw := range []int{0, 1} {
		e := echo{
			src: packet.AddrFrom(stackAddrs(1)[gw]), dst: packet.AddrFrom(stackAddrs(2)[gw]),
			size: 1420, path: 1500, id: 3, seq: 4, cookie: newCookie(),
		}
		buf := make([]byte, 2000)
		var got echo
		n := e.put(buf)
		if !got.parse(buf[:n]) || got != e || n != 1420 {
			t.Errorf("%d bytes, %+v, want %+v", n, got, e)
		}
		var p packet.Packet
		if f := p.ParseIP(buf[:n]); f != packet.Good || p.Tuple.Dst != e.dst {
			t.Errorf("fault %d, %+v", f, p.Tuple)
		}
		head := 40
		if gw == 0 {
			head = 20
		}
		seed := uint32(0)
		if gw == 1 {
			seed = uint32(pseudo(buf[:n], head, packet.ICMPv6))
		}
		if packet.Checksum(buf[head:n], seed) != 0xffff {
			t.Error("wrong checksum")
		}
	}
}

func FuzzEchoParse(f *testing.F) {
	e := echo{src: packet.AddrFrom(stackAddrs(1)[0]), dst: packet.AddrFrom(stackAddrs(2)[0])}
	buf := make([]byte, 200)
	f.Add(append([]byte(nil), buf[:e.put(buf)]...))
	e.src, e.dst = packet.AddrFrom(stackAddrs(1)[1]), packet.AddrFrom(stackAddrs(2)[1])
	f.Add(append([]byte(nil), buf[:e.put(buf)]...))
	m := quietMesh(func(uint64, [][]byte) {})
	f.Fuzz(func(t *testing.T, ip []byte) {
		var e echo
		e.parse(ip)
		m.takeEcho(m.table.Load().peers[0], ip)
		if _, err := m.tun.Write([][]byte{append(make([]byte, 16), ip...)}, 16); err != nil {
			t.Fatal(err)
		}
	})
}

// The search in sorted ranges is held against a look at every prefix.
func TestOwner(t *testing.T) {
	cfgs := []Peer{
		{ID: 1, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/25"), netip.MustParsePrefix("fd00::/64")}},
		{ID: 2, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.128/25"), netip.MustParsePrefix("10.0.2.0/23")}},
		{ID: 3, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("fd00:0:0:1::7/128")}},
	}
	tab := newTable([]*peer{{id: 1}, {id: 2}, {id: 3}}, cfgs)
	for _, s := range []string{
		"10.0.0.0", "10.0.0.127", "10.0.0.128", "10.0.0.255", "10.0.1.0", "10.0.1.255", "10.0.2.0", "10.0.3.255", "10.0.4.0",
		"9.255.255.255", "192.0.2.0", "192.0.2.1", "192.0.2.2", "0.0.0.0", "255.255.255.255", "::", "fd00::", "fd00::ffff:ffff:ffff:ffff",
		"fd00:0:0:1::", "fd00:0:0:1::7", "7fff::", "8000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		a := netip.MustParseAddr(s)
		want := uint64(0)
		for _, c := range cfgs {
			for _, p := range c.Prefixes {
				if p.Contains(a) && want == 0 {
					want = c.ID
				}
			}
		}
		got := uint64(0)
		if p := tab.owner(packet.AddrFrom(a)); p != nil {
			got = p.id
		}
		if got != want {
			t.Errorf("%s belongs to %d, want %d", s, got, want)
		}
	}
}

// BenchmarkSendRead measures a superframe from Send to the 44 packets that WireGuard reads, for a peer that takes
// partial checksums and for one that does not.
func BenchmarkSendRead(b *testing.B) {
	for name, partial := range map[string]bool{"full": false, "partial": true} {
		b.Run(name, func(b *testing.B) {
			m := quietMesh(func(uint64, [][]byte) {})
			m.table.Load().peers[0].partial.Store(partial)
			w := newWireguard()
			p := frame(b, packet.TCP, pod4(1, 5), pod4(2, 5), 60000, 1380)
			full, n := p.Buf, len(p.Buf)
			b.SetBytes(60000)
			b.ReportAllocs()
			for b.Loop() {
				m.Send(p, 2, nil)
				w.read(b, m, 44)
				p.ParseFrame(full[:n])
			}
		})
	}
}

// BenchmarkWrite measures a batch of 44 packets, of five pods of one peer, from WireGuard's write to Receive.
func BenchmarkWrite(b *testing.B) {
	packets := 0
	m := quietMesh(func(_ uint64, batch [][]byte) { packets += len(batch) })
	write, size := received(b, m)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		write()
	}
	if packets != 44*b.N {
		b.Errorf("%d packets were received of %d", packets, 44*b.N)
	}
}

// BenchmarkLoopback measures two whole Meshes, with WireGuard's work.
func BenchmarkLoopback(b *testing.B) {
	a, z := startNode(b, 1, nil), startNode(b, 2, func(o *Options) { o.Receive = func(uint64, [][]byte) {} })
	a.set(z.as(z.loopback()))
	z.set(a.as(a.loopback()))
	a.awaitSession(2)
	p := frame(b, packet.TCP, pod4(1, 5), pod4(2, 5), 60000, 1380)
	n := len(p.Buf)
	frame := append([]byte(nil), p.Buf...)
	b.SetBytes(60000)
	b.ReportAllocs()
	for b.Loop() {
		a.Send(p, 2, nil)
		p.Buf = p.Buf[:n]
		copy(p.Buf, frame)
		p.ParseFrame(p.Buf)
	}
	st := z.Stats()
	b.ReportMetric(float64(st.ReceivedPackets)/float64(a.Stats().SentPackets), "delivered")
}
