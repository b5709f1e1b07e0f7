package netstack

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// sized is a UDP packet of n bytes over IPv6.
func sized(src, dst string, n int) netstacktest.Spec {
	s := datagram(src, dst)
	s.Payload = bytes.Repeat([]byte("tapestry"), 200)[:n-48]
	return s
}

// parsed waits for the next frame that arrives at a pod, and parses it.
func (w *world) parsed(pod string, p *packet.Packet) {
	w.t.Helper()
	w.until(func() bool { return len(w.devices[pod].Frames()) > 0 })
	if f := p.ParseFrame(<-w.devices[pod].Frames()); f != packet.Good {
		w.t.Fatalf("a frame with fault %d", f)
	}
}

// cutFor returns what a Link makes of a packet for a path with room for mtu bytes.
func cutFor(t testing.TB, ip []byte, mtu int, id uint32) (parts [][]byte) {
	t.Helper()
	var c packet.Cutter
	if !c.Reset(ip, 0, mtu, id) {
		t.Fatal("the packet cannot be cut")
	}
	for dst := make([]byte, mtu); ; {
		n := c.Next(dst)
		if n == 0 {
			return parts
		}
		parts = append(parts, bytes.Clone(dst[:n]))
	}
}

// Nobody is told of a path MTU under IPv6's least one (RFC 8201 4): the Link is given what it then has to cut.
func TestPathMTUOfIPv6IsNeverUnder1280(t *testing.T) {
	const pod, far, client = "[fd00:10:244:1::10]:1000", "[fd00:10:244:2::10]:80", "[2001:db8::7]:4000"
	for name, c := range map[string]struct {
		mtu   int // of the Link
		size  int // of the packet
		to    string
		fits  bool
		large int // the MTU that the pod is told of
	}{
		"wide path":                 {1440, 1440, far, true, 0},
		"wide path, too big":        {1440, 1441, far, false, 1440},
		"narrow path":               {1240, 1280, far, true, 0},
		"narrow path, too big":      {1240, 1281, far, false, 1280},
		"very narrow path":          {516, 1280, far, true, 0},
		"client":                    {1299, 1280, client, true, 0},
		"client, too big":           {1299, 1281, client, false, 1280},
		"client, wide path":         {1400, 1380, client, true, 0},
		"client, wide path, larger": {1400, 1381, client, false, 1380},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.balancer.picks[ap("[2001:db8::1]:80")] = picked(9, pod)
			if c.to == client {
				w.from("node-2 encap", datagram(client, pod))
				w.expect("a", fmt.Sprintf("udp %s > %s", client, pod))
			}
			w.link.SetMTU(c.mtu)
			w.from("a", sized(pod, c.to, c.size))
			if c.fits {
				w.until(func() bool { return len(w.link.Sent()) > 0 })
				s := <-w.link.Sent()
				if n := len(s.Packets[0]); len(s.Packets) != 1 || n != c.size && n != c.size+20 {
					t.Fatalf("%d packets, the first one of %d bytes", len(s.Packets), n)
				}
				return
			}
			var p packet.Packet
			if w.parsed("a", &p); p.ICMPType != 2 {
				t.Fatalf("another answer: %v", p.Tuple)
			}
			if got := int(p.IP[p.L4+4])<<24 | int(p.IP[p.L4+5])<<16 | int(p.IP[p.L4+6])<<8 | int(p.IP[p.L4+7]); got != c.large {
				t.Errorf("the pod is told of %d bytes, want %d", got, c.large)
			}
		})
	}
}

// What a peer cut arrives whole, in whatever order the pieces come. Each packet is delivered once.
func TestJoin(t *testing.T) {
	plain := sized("[fd00:10:244:2::10]:80", "[fd00:10:244:1::10]:1000", addressing.MinMTU)
	client := sized("[2001:db8::7]:4000", "[fd00:10:244:1::10]:1000", addressing.MinMTU)
	for name, c := range map[string]struct {
		from string
		spec netstacktest.Spec
	}{"from a pod": {"node-2", plain}, "from a client of the peer": {"node-2 encap", client}} {
		for _, mtu := range []int{480, 700, 1240} {
			parts := cutFor(t, c.spec.IP(), mtu, 77)
			for order := range parts {
				t.Run(fmt.Sprintf("%s/%d/%d", name, mtu, order), func(t *testing.T) {
					w := newWorld(t)
					w.balancer.picks[ap("[2001:db8::1]:80")] = picked(9, "[fd00:10:244:1::10]:1000")
					for i := range parts {
						w.fromIP(c.from, parts[(i+order)%len(parts)])
					}
					var p packet.Packet
					w.parsed("a", &p)
					if want := c.spec.IP(); !bytes.Equal(p.IP, want) {
						t.Errorf("the packet has %d bytes, want %d, or other ones", len(p.IP), len(want))
					}
					w.silent()
					s := w.path.Stats()
					if s.Verdicts[Held.String()] != uint64(len(parts)-1) || s.Verdicts[ToTAP.String()] != 1 || s.Verdicts[Dropped.String()] != 0 {
						t.Errorf("%d pieces: %v", len(parts), s)
					}
				})
			}
		}
	}
}

// A batch of cut packets becomes a superframe again.
func TestJoinedPacketsAreCoalesced(t *testing.T) {
	w := newWorld(t)
	var batch [][]byte
	for i := range 8 {
		s := segment("[fd00:10:244:2::10]:80", "[fd00:10:244:1::10]:1000", packet.ACK)
		s.Seq, s.Payload = uint32(1000+1220*i), bytes.Repeat([]byte{byte(i)}, 1220)
		batch = append(batch, cutFor(t, s.IP(), 1240, uint32(i))...)
	}
	w.path.FromLink(node2, batch)
	var p packet.Packet
	if w.parsed("a", &p); p.VNet.GSOType == packet.GSONone || p.Len()-p.Payload != 8*1220 {
		t.Fatalf("a frame with %d bytes of payload", p.Len()-p.Payload)
	}
	for i := range 8 {
		if got := p.IP[p.Payload+1220*i]; got != byte(i) {
			t.Errorf("segment %d holds the bytes of segment %d", i, got)
		}
	}
}

// Peers do not complete, replace or crowd out one another's packets.
func TestJoinKeepsPeersApart(t *testing.T) {
	w := newWorld(t)
	const node3 = node2 + 1
	w.config.Peers = append(slices.Clone(w.config.Peers), PeerRoute{
		ID: node3, Name: "node-3", PodCIDRs: addresstest.Prefixes("10.244.3.0/24", "fd00:10:244:3::/64"),
		NodeAddrs: []netip.Addr{netip.MustParseAddr("172.31.0.13")}, Encap: true,
	})
	w.balancer.picks[ap("[2001:db8::1]:80")] = picked(9, "[fd00:10:244:1::10]:1000")
	w.set()
	// Both peers may have the same client.
	parts := cutFor(t, sized("[2001:db8::7]:4000", "[fd00:10:244:1::10]:1000", addressing.MinMTU).IP(), 1240, 5)
	first, second := encapsulateIP(parts[0], "10.244.2.1", "10.244.1.1"), encapsulateIP(parts[1], "10.244.3.1", "10.244.1.1")
	w.path.FromLink(node2, [][]byte{first})
	w.path.FromLink(node3, [][]byte{second})
	for id := range uint32(3 * maxCut) {
		piece := cutFor(t, sized("[fd00:10:244:3::10]:80", "[fd00:10:244:1::10]:1000", addressing.MinMTU).IP(), 1240, id)[0]
		w.path.FromLink(node3, [][]byte{piece})
	}
	w.silent()
	w.path.FromLink(node2, [][]byte{encapsulateIP(parts[1], "10.244.2.1", "10.244.1.1")})
	w.expect("a", "udp [2001:db8::7]:4000 > [fd00:10:244:1::10]:1000")
	if s := w.path.pieces.Stats(); s.Held > maxCut {
		t.Errorf("%d incomplete packets, want at most %d", s.Held, maxCut)
	}
}

// A node that does not know the mark passes the pieces on as fragments, and so does this one for pieces without it.
func TestPiecesAreFragmentsToOthers(t *testing.T) {
	w := newWorld(t)
	for _, part := range cutFor(t, sized("[fd00:10:244:2::10]:80", "[fd00:10:244:1::10]:1000", addressing.MinMTU).IP(), 1240, 5) {
		var p packet.Packet
		if f := p.ParseIP(part); f != packet.Good {
			t.Fatalf("fault %d", f)
		}
		p.ClearCutMark()
		w.fromIP("node-2", part)
		if w.parsed("a", &p); p.Frag == packet.NoFrag || !bytes.Equal(p.IP, part) {
			t.Error("another packet than the fragment")
		}
	}
}

// Nonsense under the mark is dropped, and costs nothing of others.
func TestJoinRefuses(t *testing.T) {
	w := newWorld(t)
	long := sized("[fd00:10:244:2::10]:80", "[fd00:10:244:1::10]:1000", 1600)
	for _, part := range cutFor(t, long.IP(), 1240, 5) { // more than a Link may cut
		w.fromIP("node-2", part)
	}
	part := cutFor(t, sized("[fd00:10:244:2::10]:80", "[fd00:10:244:1::10]:1000", addressing.MinMTU).IP(), 1240, 6)[0]
	part[5]++ // longer than it is
	w.fromIP("node-2", part)
	w.counted(Malformed, 1)
	w.silent()
}

func TestJoinAllocatesNothing(t *testing.T) {
	w, _ := hotNode(t)
	parts := cutFor(t, sized("[fd00:10:244:2::10]:80", "[fd00:10:244:1::10]:1000", addressing.MinMTU).IP(), 1240, 5)
	peer := &peer{owner: packet.Addr{1}}
	if n := testing.AllocsPerRun(200, func() {
		w.joined = w.joined[:0]
		if w.join(peer, parts[0]) != nil || w.join(peer, parts[1]) == nil {
			t.Fatal("not joined")
		}
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}
