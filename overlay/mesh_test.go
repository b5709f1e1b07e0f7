package overlay

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/awake"
)

// pair is two nodes that know each other over loopback.
func pair(t testing.TB, change func(*Options)) (a, b *node) {
	a, b = startNode(t, 1, change), startNode(t, 2, change)
	a.set(b.as(b.loopback()))
	b.set(a.as(a.loopback()))
	a.awaitSession(2)
	b.awaitSession(1)
	return a, b
}

func TestSuperframes(t *testing.T) {
	a, b := pair(t, nil)
	for _, c := range []struct {
		name     string
		proto    packet.Proto
		src, dst netip.Addr
		n, mss   int
		packets  int
	}{
		{"tcp4", packet.TCP, pod4(1, 5), pod4(2, 5), 60000, 1380, 44},
		{"tcp6", packet.TCP, pod6(1, 5), pod6(2, 5), 60000, 1360, 45},
		{"tcp4 small", packet.TCP, pod4(1, 5), pod4(2, 5), 1, 1400, 1},
		{"udp4", packet.UDP, pod4(1, 5), pod4(2, 5), 9000, 1000, 9},
		{"udp6", packet.UDP, pod6(1, 5), pod6(2, 5), 1200, 1300, 1},
		{"tcp4 more than one batch", packet.TCP, pod4(1, 5), pod4(2, 5), 65000, 200, 325},
		{"to the node's address", packet.TCP, pod4(1, 5), netip.MustParseAddr("192.0.2.2"), 100, 1400, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.forget()
			p := frame(t, c.proto, c.src, c.dst, c.n, c.mss)
			want := append([]byte(nil), p.IP[p.Payload:]...)
			full := p.Buf
			a.Send(p, 2, nil)
			if &p.Buf[0] == &full[0] || cap(p.Buf) < packet.MaxFrame {
				t.Error("the buffer was not exchanged for one that holds any superframe")
			}
			await.Until(t, "all packets", func() bool { return len(b.received(1)) == c.packets })
			if !bytes.Equal(payloads(t, b.received(1)), want) {
				t.Error("the payload is not what was sent")
			}
		})
	}
}

// Packets from the tunnel, and in the stack's short buffers, are copied; the buffers stay the caller's.
func TestSendBorrowed(t *testing.T) {
	a, b := pair(t, nil)
	whole := frame(t, packet.TCP, pod4(1, 5), pod4(2, 5), 3000, 1000)
	want := append([]byte(nil), whole.IP[whole.Payload:]...)
	p := *whole
	cut := p.Payload + 1000
	p.Tail = [][]byte{append([]byte(nil), p.IP[cut:cut+1000]...), append([]byte(nil), p.IP[cut+1000:]...)}
	p.IP, p.Buf = append([]byte(nil), p.IP[:cut]...), nil
	a.Send(&p, 2, nil)
	clear(p.IP)
	await.Until(t, "all packets", func() bool { return len(b.received(1)) == 3 })
	if !bytes.Equal(payloads(t, b.received(1)), want) {
		t.Error("the payload is not what was sent")
	}
}

func TestEncapsulated(t *testing.T) {
	a, b := pair(t, nil)
	client4, client6 := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")
	for _, c := range []struct {
		name     string
		src, dst netip.Addr
		gw       int
	}{{"v4", client4, pod4(2, 5), 0}, {"v6", client6, pod6(2, 5), 1}} {
		t.Run(c.name, func(t *testing.T) {
			b.forget()
			via := packet.Encap{Src: packet.AddrFrom(stackAddrs(1)[c.gw]), Dst: packet.AddrFrom(stackAddrs(2)[c.gw])}
			p := frame(t, packet.TCP, c.src, c.dst, 5000, 1300)
			want := append([]byte(nil), p.IP[p.Payload:]...)
			a.Send(p, 2, &via)
			await.Until(t, "all packets", func() bool { return len(b.received(1)) == 4 })
			var inner [][]byte
			for _, ip := range b.received(1) {
				in, outer, ok := packet.Decap(ip)
				if !ok || outer != via {
					t.Fatalf("outer header %v, %v", outer, ok)
				}
				inner = append(inner, in)
			}
			if !bytes.Equal(payloads(t, inner), want) {
				t.Error("the payload is not what was sent")
			}
		})
	}
}

// A peer that takes partial checksums gets them on packets that came with partial ones. Once the peer no longer takes
// them, it gets full ones.
func TestPartialChecksums(t *testing.T) {
	a, b := pair(t, nil)
	takes := b.as(b.loopback())
	takes.TakesPartial = true
	client := netip.MustParseAddr("203.0.113.9")
	via := packet.Encap{Src: packet.AddrFrom(stackAddrs(1)[0]), Dst: packet.AddrFrom(stackAddrs(2)[0])}
	for _, c := range []struct {
		name     string
		proto    packet.Proto
		src, dst netip.Addr
		n        int
		via      *packet.Encap
	}{
		{"tcp4", packet.TCP, pod4(1, 5), pod4(2, 5), 60001, nil},
		{"tcp6", packet.TCP, pod6(1, 5), pod6(2, 5), 60001, nil},
		{"tcp4 small", packet.TCP, pod4(1, 5), pod4(2, 5), 1, nil},
		{"udp4", packet.UDP, pod4(1, 5), pod4(2, 5), 9001, nil},
		{"udp6", packet.UDP, pod6(1, 5), pod6(2, 5), 9001, nil},
		{"encapsulated", packet.TCP, client, pod4(2, 5), 9001, &via},
	} {
		t.Run(c.name, func(t *testing.T) {
			count := (c.n + 999) / 1000
			for _, partial := range []bool{false, true, false} {
				peer := b.as(b.loopback())
				if partial {
					peer = takes
				}
				a.set(peer)
				b.forget()
				before := a.Stats().SentPartial
				a.Send(frame(t, c.proto, c.src, c.dst, c.n, 1000), 2, c.via)
				// This packet has a full checksum from the start, which stays as it is.
				full := frame(t, c.proto, c.src, c.dst, 10, 1000)
				full.CompleteChecksum()
				a.Send(full, 2, c.via)
				await.Until(t, "all packets", func() bool { return len(b.received(1)) == count+1 })
				got := b.received(1)
				for i := range got {
					if c.via != nil {
						got[i], _, _ = packet.Decap(got[i])
					}
				}
				want := uint64(0)
				if partial {
					want = uint64(count)
					for _, ip := range got[:count] {
						complete(t, ip)
					}
				}
				if n := a.Stats().SentPartial - before; n != want {
					t.Errorf("%d packets count as partial, want %d", n, want)
				}
				payloads(t, got)
			}
		})
	}
}

func TestUnderlayIPv6(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	a.set(b.as(b.loopback6()))
	b.set(a.as(a.loopback6()))
	b.awaitSession(1)
	a.Send(frame(t, packet.TCP, pod4(1, 5), pod4(2, 5), 30000, 1300), 2, nil)
	await.Until(t, "all packets", func() bool { return len(b.received(1)) == 24 })
	payloads(t, b.received(1))
	await.Until(t, "MTU of an IPv6 underlay", func() bool { return a.MTU(2) == 1420 })
	if s := a.Status(); s[0].Endpoint != b.loopback6() {
		t.Errorf("endpoint %s, want %s", s[0].Endpoint, b.loopback6())
	}
}

// A restarted agent has the same key and the same socket but no session, while its peer still uses the old session.
func TestRestart(t *testing.T) {
	sock, err := OpenSocket(0)
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	useSocket := func(o *Options) { o.Socket = sock }
	a, b := startNode(t, 1, useSocket), startNode(t, 2, nil)
	a.set(b.as(b.loopback()))
	b.set(a.as(a.loopback()))
	b.awaitSession(1)

	a.Close()
	b.Send(frame(t, packet.UDP, pod4(2, 5), pod4(1, 5), 100, 1000), 1, nil) // waits in the socket, for a dead session
	a.forget()
	clock := awake.Start()
	defer clock.Stop()
	a.start(1, useSocket)
	a.set(b.as(b.loopback()))
	await.Until(t, "packets from the peer", func() bool {
		b.Send(frame(t, packet.UDP, pod4(2, 5), pod4(1, 5), 100, 1000), 1, nil)
		return len(a.received(2)) > 0
	})
	if stall := clock.Now(); stall > time.Second {
		t.Errorf("no packets for %v after the restart", stall)
	}
	a.Send(frame(t, packet.UDP, pod4(1, 5), pod4(2, 5), 100, 1000), 2, nil)
	await.Until(t, "packets to the peer", func() bool { return len(b.received(1)) > 0 })
}

func TestGarbageOnThePort(t *testing.T) {
	a, b := pair(t, nil)
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(b.loopback()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i, junk := range [][]byte{{}, {1}, make([]byte, 148), bytes.Repeat([]byte{4, 0, 0, 0}, 300), make([]byte, 60000)} {
		for typ := range byte(6) {
			if len(junk) > 0 {
				junk[0] = typ
			}
			if _, err := c.Write(junk); err != nil {
				t.Fatalf("junk %d: %v", i, err)
			}
		}
	}
	a.Send(frame(t, packet.TCP, pod4(1, 5), pod4(2, 5), 30000, 1300), 2, nil)
	await.Until(t, "all packets", func() bool { return len(b.received(1)) == 24 })
	payloads(t, b.received(1))
}

// A peer may use only its own prefixes inside the tunnel.
func TestSpoofedSource(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	a.set(b.as(b.loopback()))
	b.set(a.as(a.loopback()))
	b.awaitSession(1)
	for _, src := range []netip.Addr{pod4(2, 9), pod4(3, 9), netip.MustParseAddr("203.0.113.1")} {
		a.Send(frame(t, packet.UDP, src, pod4(2, 5), 100, 1000), 2, nil)
	}
	a.Send(frame(t, packet.UDP, pod4(1, 5), pod4(2, 5), 7, 1000), 2, nil) // the last one, in order
	await.Until(t, "the honest packet", func() bool { return len(b.received(1)) > 0 })
	if got := b.received(1); len(got) != 1 || len(payloads(t, got)) != 7 {
		t.Errorf("%d packets, want the honest one", len(got))
	}
}

// The tunnel checks sources itself, since WireGuard's allowed IPs and the Mesh's table differ for a moment during Set.
func TestWriteChecksSource(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	b.set(a.as(netip.AddrPort{}))
	_ = a
	var bufs [][]byte
	add := func(src netip.Addr) {
		p := frame(t, packet.UDP, src, pod4(2, 5), 10, 1000)
		bufs = append(bufs, append(make([]byte, 16), p.IP...))
	}
	add(pod4(9, 1))
	add(pod4(1, 1))
	add(pod6(9, 1))
	add(pod6(1, 1))
	bufs = append(bufs, append(make([]byte, 16), 0x60, 0, 0), append(make([]byte, 16), make([]byte, 40)...))
	if _, err := b.tun.Write(bufs, 16); err != nil {
		t.Fatal(err)
	}
	if got := b.received(1); len(got) != 2 || got[0][0]>>4 != 4 || got[1][0]>>4 != 6 {
		t.Errorf("got %d packets, want one of each family", len(got))
	}
	if s := b.Stats(); s.DropSpoofed != 4 {
		t.Errorf("%d spoofed, want 4", s.DropSpoofed)
	}
}

// Datagrams from inside a pod range are dropped, so no endpoint ever roams there.
func TestForbiddenEndpoint(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	third := Peer{
		ID: 3, Name: "c", PublicKey: NewPrivateKey().Public(),
		Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, StackAddrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
	}
	// For b, the datagrams of a come from a pod range. a has no endpoint here: with one inside the range, b would not
	// take the range for a pod range.
	b.set(a.as(netip.AddrPort{}), third)
	a.set(b.as(b.loopback()))
	await.Until(t, "refused datagrams", func() bool { return b.Stats().DropForbidden >= 2 })
	if s := b.Status(); s[0].HandshakeAge >= 0 || s[0].Endpoint.IsValid() {
		t.Errorf("the peer got through: %+v", s[0])
	}
	b.set(a.as(netip.AddrPort{}))
	a.awaitSession(2)
}

func TestForbiddenOption(t *testing.T) {
	a := startNode(t, 1, nil)
	b := startNode(t, 2, func(o *Options) { o.Forbidden = netip.Addr.IsLoopback })
	b.set(a.as(netip.AddrPort{}))
	a.set(b.as(b.loopback()))
	await.Until(t, "refused datagrams", func() bool { return b.Stats().DropForbidden >= 1 })
}

// A peer that is wrong, or wants what another one has, is left out, and costs nobody else anything.
func TestSetRefuses(t *testing.T) {
	d := startNode(t, 1, nil)
	key, honest := NewPrivateKey().Public(), Peer{ID: 99, Name: "honest", PublicKey: NewPrivateKey().Public(), Prefixes: addresstest.Prefixes("10.99.0.0/24")}
	pre := netip.MustParsePrefix
	for _, c := range []struct {
		name, want, left string // what is said of whom
		peers            []Peer
	}{
		{"same id", `has the same ID 0x2 as peer "b"`, "c", []Peer{{ID: 2, Name: "b"}, {ID: 2, Name: "c"}}},
		{"same key", `as peer "b": every node needs a key of its own`, "c", []Peer{{ID: 2, Name: "b", PublicKey: key}, {ID: 3, Name: "c", PublicKey: key}}},
		{"own key", "own public key", "b", []Peer{{ID: 2, Name: "b", PublicKey: d.key.Public()}}},
		{"equal prefixes", `its prefix 10.0.0.0/24 overlaps 10.0.0.0/24 of peer "b"`, "c",
			[]Peer{{ID: 2, Name: "b", Prefixes: []netip.Prefix{pre("10.0.0.0/24")}},
				{ID: 3, Name: "c", Prefixes: []netip.Prefix{pre("10.0.0.0/24")}}}},
		{"nested prefixes", "overlaps", "c", []Peer{{ID: 2, Prefixes: []netip.Prefix{pre("fd00::/16")}},
			{ID: 3, Name: "c", Prefixes: []netip.Prefix{pre("fd00:1::/64")}}}},
		{"nested around another", "overlaps", "c", []Peer{{ID: 2, Prefixes: []netip.Prefix{pre("10.0.0.0/25")}},
			{ID: 3, Name: "c", Prefixes: []netip.Prefix{pre("10.0.0.0/18")}}}},
		{"another's, that was there before", `overlaps 10.99.0.0/24 of peer "honest"`, "b", []Peer{{ID: 2, Name: "b", Prefixes: []netip.Prefix{pre("10.99.0.128/25")}}}},
		{"another's key, that was there before", `as peer "honest"`, "b", []Peer{{ID: 2, Name: "b", PublicKey: honest.PublicKey}}},
		{"nested in one peer", "overlap", "b", []Peer{{ID: 2, Name: "b", Prefixes: []netip.Prefix{pre("10.0.0.0/18"), pre("10.0.1.0/24")}}}},
		{"endpoint without port", "expected a port", "b", []Peer{{ID: 2, Name: "b", Endpoint: netip.MustParseAddrPort("192.0.2.1:0")}}},
		{"endpoint in pods", "pod range", "b", []Peer{{ID: 2, Name: "b", Endpoint: netip.MustParseAddrPort("10.0.0.7:51820"),
			Prefixes: []netip.Prefix{pre("10.0.0.0/24")}, StackAddrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}},
		{"stack elsewhere", "in none of its prefixes", "b", []Peer{{ID: 2, Name: "b", StackAddrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}},
		{"mapped prefix", "expected an IPv4", "b", []Peer{{ID: 2, Name: "b", Prefixes: []netip.Prefix{pre("::ffff:10.0.0.0/104")}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, peers := range [][]Peer{{honest}, append(slices.Clone(c.peers), honest)} {
				if err := d.Set(Config{Peers: peers}); err != nil {
					t.Fatal(err)
				}
			}
			refused := d.Refused()
			if len(refused) != 1 || refused[0].Name != c.left || !strings.Contains(refused[0].Why.Error(), c.want) {
				t.Errorf("refused %v, want %s with %q", refused, c.left, c.want)
			}
			served := d.Status()
			if n := len(served); n != len(c.peers) || served[n-1].Name != "honest" {
				t.Errorf("%v are served", served)
			}
		})
	}
	if err := d.Set(Config{Peers: []Peer{honest}}); err != nil || len(d.Refused()) != 0 {
		t.Errorf("afterwards %v, refused %v", err, d.Refused())
	}
}

// The sessions of peers that stay go on when others come and go. A peer with a new key is a new peer.
func TestSetChanges(t *testing.T) {
	a, b := pair(t, nil)
	c := startNode(t, 3, nil)
	c.set(a.as(a.loopback()))
	age := a.Status()[0].HandshakeAge
	began := time.Now()
	a.set(b.as(b.loopback()), c.as(c.loopback()))
	c.awaitSession(1)
	a.set(b.as(b.loopback()), c.as(c.loopback()))
	a.Send(frame(t, packet.UDP, pod4(1, 5), pod4(3, 5), 10, 1000), 3, nil)
	await.Until(t, "packet to the new peer", func() bool { return len(c.received(1)) == 1 })
	passed := time.Since(began)
	if younger := age + passed - a.Status()[0].HandshakeAge; younger > time.Millisecond {
		t.Errorf("the other peer's session is %v younger", younger)
	}

	moved := b.as(b.loopback())
	moved.Prefixes = append(moved.Prefixes, podCIDRs(3)...)
	a.set(moved) // the prefixes of c now belong to b
	a.Send(frame(t, packet.UDP, pod4(1, 5), pod4(3, 5), 10, 1000), 2, nil)
	await.Until(t, "packet to the new owner", func() bool { return len(b.received(1)) == 1 })

	a.Send(frame(t, packet.UDP, pod4(1, 5), pod4(3, 5), 10, 1000), 3, nil)
	if s := a.Stats(); s.DropNoPeer != 1 {
		t.Errorf("%d packets for no peer, want 1", s.DropNoPeer)
	}

	b.Close()
	b.key = NewPrivateKey()
	b.start(2, nil)
	b.set(a.as(a.loopback()))
	a.set(b.as(b.loopback()))
	b.awaitSession(1)
	b.forget()
	a.Send(frame(t, packet.UDP, pod4(1, 5), pod4(2, 5), 10, 1000), 2, nil)
	await.Until(t, "packet to the new key", func() bool { return len(b.received(1)) == 1 })
}

// Close ends a Send that waits for room.
func TestCloseUnblocksSend(t *testing.T) {
	a := startNode(t, 1, nil)
	b := startNode(t, 2, nil)
	a.set(b.as(netip.AddrPort{}))
	a.inflight.Store(1 << 40) // as if WireGuard held more packets than it may
	a.table.Load().byID[2].live.Store(true)
	sent := make(chan int)
	go func() {
		n := 0
		for ; n < ringSize+1; n++ {
			a.Send(frame(t, packet.UDP, pod4(1, 5), pod4(2, 5), 10, 1000), 2, nil)
		}
		sent <- n
	}()
	await.Until(t, "a sender that waits", func() bool {
		a.ring.mu.Lock()
		defer a.ring.mu.Unlock()
		a.inflight.Add(1) // the prober resets a count that does not change
		return len(a.ring.lanes) == 1 && a.ring.lanes[0].waiting == 1
	})
	a.Close()
	<-sent
}

// A flood to a peer that does not answer must not fill the memory with 64 KiB buffers.
func TestFloodWithoutSession(t *testing.T) {
	a := startNode(t, 1, nil)
	away := Peer{ID: 2, Name: "b", PublicKey: NewPrivateKey().Public(), Prefixes: podCIDRs(2),
		Endpoint: netip.MustParseAddrPort("127.0.0.1:9")}
	began := time.Now()
	a.set(away)
	for range 100 {
		a.Send(frame(t, packet.TCP, pod4(1, 5), pod4(2, 5), 60000, 1380), 2, nil)
	}
	await.Until(t, "drops", func() bool { return a.Stats().DropNoSession > 50 })
	n := a.Stats().SentPackets
	if most := 2*stagedMax + stagedGrant*uint64(time.Since(began)/lookBusy); n > most {
		t.Errorf("WireGuard got %d packets for a peer that is away, want %d at most", n, most)
	}
}

func TestStatus(t *testing.T) {
	a, b := pair(t, nil)
	a.Send(frame(t, packet.UDP, pod4(1, 5), pod4(2, 5), 1000, 1200), 2, nil)
	await.Until(t, "packet", func() bool { return len(b.received(1)) == 1 })
	s := a.Status()
	if len(s) != 1 || s[0].ID != 2 || s[0].Name != "b" || s[0].PublicKey != b.key.Public() || s[0].Endpoint != b.loopback() ||
		s[0].HandshakeAge < 0 || s[0].HandshakeAge > time.Minute || s[0].SentBytes < 1000 || s[0].MTU != 1440 {
		t.Errorf("status %+v", s)
	}
	if st := a.Stats(); st.SentPackets != 1 || st.SentBytes != 1028 {
		t.Errorf("stats %+v", st)
	}
	if st := b.Stats(); st.ReceivedPackets != 1 || st.ReceivedBytes != 1028 {
		t.Errorf("stats %+v", st)
	}
	if strings.Contains(fmt.Sprintf("%+v %+v", s, a.Stats()), a.key.Public().String()) {
		t.Error("own key among the peers")
	}
}
