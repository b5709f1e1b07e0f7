package overlay

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/overlay/overlaytest"
)

// dual is two Meshes with an address of each family, on an underlay in memory, in a synctest bubble.
type dual struct {
	t     *testing.T
	under *overlaytest.Underlay
	mesh  [2]*Mesh
	got   [2]atomic.Int64 // packets received
}

// dualAddrs are the addresses of both Meshes, IPv4 first.
var dualAddrs = [2][]netip.AddrPort{
	{netip.MustParseAddrPort("192.0.2.1:51820"), netip.MustParseAddrPort("[2001:db8::1]:51820")},
	{netip.MustParseAddrPort("192.0.2.2:51820"), netip.MustParseAddrPort("[2001:db8::2]:51820")},
}

// neverFreed are peers of WireGuard's that were made in a synctest bubble. Their finalizers would receive from channels
// of the bubble outside of it.
var neverFreed []*device.Peer

// newDual starts both Meshes. knows is how many addresses of the other one each of them knows.
func newDual(t *testing.T, knows [2]int, prepare func(*dual)) *dual {
	d := &dual{t: t, under: overlaytest.New(1)}
	if prepare != nil {
		prepare(d)
	}
	keys := [2]PrivateKey{NewPrivateKey(), NewPrivateKey()}
	for i := range d.mesh {
		m, err := New(Options{
			PrivateKey: keys[i], Bind: d.under.Bind(dualAddrs[i][0], dualAddrs[i][1]), StackAddrs: []netip.Addr{stackAddrs(i + 1)[0]},
			Logger:  slog.New(slog.NewTextHandler(t.Output(), nil)),
			Receive: func(_ uint64, packets [][]byte) { d.got[i].Add(int64(len(packets))) },
		})
		if err != nil {
			t.Fatal(err)
		}
		d.mesh[i] = m
	}
	for i, m := range d.mesh {
		far := 1 - i
		if err := m.Set(Config{Peers: []Peer{{
			ID: uint64(far + 1), Name: "far", PublicKey: keys[far].Public(), Endpoint: dualAddrs[far][0], Others: dualAddrs[far][1:knows[i]],
			Prefixes: podCIDRs(far + 1)[:1], StackAddrs: []netip.Addr{stackAddrs(far + 1)[0]}, Tapestry: true,
		}}}); err != nil {
			t.Fatal(err)
		}
		neverFreed = append(neverFreed, m.dev.LookupPeer(device.NoisePublicKey(keys[far].Public())))
	}
	return d
}

func (d *dual) close() {
	for _, m := range d.mesh {
		m.Close()
		m.ring.free = [ringSize][]byte{} // neverFreed keeps the Mesh
	}
	d.under.Close()
}

// cut decides whether datagrams of a family get through from one Mesh to the other.
func (d *dual) cut(from, family int, broken bool) {
	d.under.Impair(dualAddrs[from][family].Addr(), dualAddrs[1-from][family].Addr(), overlaytest.Impairment{Partition: broken})
}

// send sends a packet of n bytes from one Mesh to the other.
func (d *dual) send(from, n int) {
	buf := make([]byte, packet.HeadLen+n, packet.MaxFrame)
	ip := buf[packet.HeadLen:]
	ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, byte(packet.UDP)
	binary.BigEndian.PutUint16(ip[2:], uint16(n))
	copy(ip[12:], pod4(from+1, 5).AsSlice())
	copy(ip[16:], pod4(2-from, 5).AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
	binary.BigEndian.PutUint16(ip[24:], uint16(n-20))
	var p packet.Packet
	if f := p.ParseIP(ip); f != packet.Good {
		d.t.Fatalf("bad packet: fault %d", f)
	}
	d.mesh[from].Send(&p, uint64(2-from), nil)
}

// talk has packets of n bytes go every 50 ms in the directions that senders name for as long as d, and returns the
// longest time in which one of the directions carried none.
func (d *dual) talk(length time.Duration, n int, senders ...int) (longest time.Duration) {
	var last [2]time.Time
	var seen [2]int64
	start := time.Now()
	for i := range last {
		last[i], seen[i] = start, d.got[i].Load()
	}
	for time.Since(start) < length {
		for _, from := range senders {
			d.send(from, n)
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		for _, from := range senders {
			to := 1 - from
			if now := d.got[to].Load(); now != seen[to] {
				seen[to], last[to] = now, time.Now()
			}
			longest = max(longest, time.Since(last[to]))
		}
	}
	return longest
}

// uses returns the family of the address at which a Mesh talks to the other one, 0 for IPv4.
func (d *dual) uses(i int) int {
	return slices.Index(dualAddrs[1-i], d.mesh[i].Status()[0].Endpoint)
}

// await waits until both Meshes have had an answer.
func (d *dual) await() {
	d.t.Helper()
	for range 1000 {
		if d.mesh[0].Status()[0].AnswerAge >= 0 && d.mesh[1].Status()[0].AnswerAge >= 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	d.t.Fatal("no session after 10 s")
}

// usual is the longest pause without a fault. The underlay in memory does not say what it sent, so every 768 packets
// the Mesh waits for two looks of its prober.
const usual = 300 * time.Millisecond

// Whichever way of one family breaks, traffic goes on over the other family, and returns when the way is good again.
func TestOtherFamily(t *testing.T) {
	for _, c := range []struct {
		name    string
		broken  []int // Meshes whose IPv4 datagrams are lost
		knows   [2]int
		senders []int
		size    int
	}{
		{"both ways", []int{0, 1}, [2]int{2, 2}, []int{0, 1}, 100},
		{"both ways, large packets", []int{0, 1}, [2]int{2, 2}, []int{0, 1}, 1400},
		{"there", []int{0}, [2]int{2, 2}, []int{0, 1}, 100},
		{"back", []int{1}, [2]int{2, 2}, []int{0, 1}, 100},
		{"one sends", []int{0, 1}, [2]int{2, 2}, []int{0}, 100},
		{"the other end is older", []int{0, 1}, [2]int{2, 1}, []int{0, 1}, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDual(t, c.knows, nil)
				defer d.close()
				d.await()
				if gap := d.talk(5*time.Second, c.size, c.senders...); gap > usual {
					t.Errorf("nothing arrived for %v before the path broke", gap)
				}
				for _, from := range c.broken {
					d.cut(from, 0, true)
				}
				if gap := d.talk(10*time.Second, c.size, c.senders...); gap > 2*time.Second {
					t.Errorf("nothing arrived for %v after the path broke", gap)
				}
				if u := [2]int{d.uses(0), d.uses(1)}; u != [2]int{1, 1} {
					t.Errorf("the Meshes use %v, want IPv6", u)
				}
				// While the path stays broken, trying it costs nothing.
				if gap := d.talk(2*time.Minute, c.size, c.senders...); gap > usual {
					t.Errorf("nothing arrived for %v while the path was broken", gap)
				}
				if l := append(d.mesh[0].Lost(), d.mesh[1].Lost()...); len(l) == 0 || !l[0].Preferred.Addr().Is4() || !l[0].Used.Addr().Is6() {
					t.Errorf("the broken path is told as %+v", l)
				}
				for _, from := range c.broken {
					d.cut(from, 0, false)
				}
				if gap := d.talk(time.Minute, c.size, c.senders...); gap > usual {
					t.Errorf("nothing arrived for %v after the path was good again", gap)
				}
				if u := [2]int{d.uses(0), d.uses(1)}; u != [2]int{} {
					t.Errorf("the Meshes use %v a minute after the path was good again, want IPv4", u)
				}
				if l := append(d.mesh[0].Lost(), d.mesh[1].Lost()...); len(l) != 0 {
					t.Errorf("a good path is told as %+v", l)
				}
			})
		})
	}
}

// A node that starts while one family is broken finds the other one.
func TestOtherFamilyAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDual(t, [2]int{2, 2}, func(d *dual) {
			d.cut(0, 0, true)
			d.cut(1, 0, true)
		})
		defer d.close()
		start := time.Now()
		d.await()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("the first answer came after %v", took)
		}
		d.cut(0, 0, false)
		d.cut(1, 0, false)
		d.talk(time.Minute, 100, 0, 1)
		if u := [2]int{d.uses(0), d.uses(1)}; u != [2]int{} {
			t.Errorf("the Meshes use %v a minute after the path was good, want IPv4", u)
		}
	})
}

// Each address has a path MTU of its own.
func TestPathMTUOfEachAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDual(t, [2]int{2, 2}, nil)
		defer d.close()
		for i := range 2 {
			d.under.Impair(dualAddrs[i][1].Addr(), dualAddrs[1-i][1].Addr(), overlaytest.Impairment{MTU: 1300})
		}
		d.await()
		d.talk(5*time.Second, 1400, 0)
		wide := d.mesh[0].MTU(2)
		d.cut(0, 0, true)
		d.cut(1, 0, true)
		d.talk(5*time.Second, 1400, 0)
		if mtu := d.mesh[0].MTU(2); mtu > 1300-80 || mtu < 1300-120 {
			t.Errorf("the MTU over IPv6 is %d, want what fits into 1300", mtu)
		}
		d.cut(0, 0, false)
		d.cut(1, 0, false)
		for d.uses(0) != 0 {
			d.talk(time.Second, 100, 0)
		}
		if mtu := d.mesh[0].MTU(2); mtu != wide {
			t.Errorf("the MTU over IPv4 is %d again, want %d", mtu, wide)
		}
	})
}

// A peer that is silent everywhere is sent no more handshakes than one that has a single address, and hardly more
// datagrams.
func TestSilentPeerIsNotProbedHarder(t *testing.T) {
	var all, shakes [3]int
	for knows := 1; knows <= 2; knows++ {
		synctest.Test(t, func(t *testing.T) {
			d := newDual(t, [2]int{knows, knows}, nil)
			defer d.close()
			d.await()
			d.talk(5*time.Second, 100, 0)
			var datagrams, initiations atomic.Int64
			d.under.Capture(func(g overlaytest.Datagram) {
				if g.From.Addr() == dualAddrs[0][0].Addr() || g.From.Addr() == dualAddrs[0][1].Addr() {
					datagrams.Add(1)
					if g.Payload[0] == 1 {
						initiations.Add(1)
					}
				}
			})
			for i := range 4 {
				d.cut(i%2, i/2, true)
			}
			for range 600 {
				d.send(0, 100)
				time.Sleep(100 * time.Millisecond)
			}
			all[knows], shakes[knows] = int(datagrams.Load()), int(initiations.Load())
		})
	}
	if shakes[2] > shakes[1] {
		t.Errorf("%d initiations went to a silent peer with two addresses, and %d to one with one", shakes[2], shakes[1])
	}
	if limit := all[1] + 40; all[2] > limit {
		t.Errorf("%d datagrams went to a silent peer with two addresses, and %d to one with one", all[2], all[1])
	}
	t.Logf("datagrams in a minute: %d, %d; initiations: %d, %d", all[1], all[2], shakes[1], shakes[2])
}

// Stock WireGuard answers no probes, so its further addresses are not used.
func TestStockHasOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDual(t, [2]int{1, 1}, nil)
		defer d.close()
		d.await()
		far := Peer{ID: 2, Name: "far", PublicKey: NewPrivateKey().Public(), Endpoint: dualAddrs[1][0], Others: dualAddrs[1][1:],
			Prefixes: podCIDRs(2)[:1]}
		if err := d.mesh[0].Set(Config{Peers: []Peer{far}}); err != nil {
			t.Fatal(err)
		}
		neverFreed = append(neverFreed, d.mesh[0].dev.LookupPeer(device.NoisePublicKey(far.PublicKey)))
		d.under.Capture(func(g overlaytest.Datagram) {
			if g.To == dualAddrs[1][1] {
				t.Errorf("a datagram went to %v", g.To)
			}
		})
		for range 100 {
			d.send(0, 100)
			time.Sleep(100 * time.Millisecond)
		}
		d.under.Capture(nil)
	})
}

// A probe for which there is no mark left is not sent, since it would go to the peer's present address and be answered
// from there.
func TestMarksAreBounded(t *testing.T) {
	under := overlaytest.New(1)
	defer under.Close()
	to, err := under.Bind(dualAddrs[0][0]).ParseEndpoint(dualAddrs[1][1].String())
	if err != nil {
		t.Fatal(err)
	}
	m := quietMesh(func(uint64, [][]byte) {})
	var held [][]byte
	for range maxMarks {
		held = append(held, make([]byte, 1))
		if !m.div.mark(held[len(held)-1], to) {
			t.Fatal("a mark was refused")
		}
	}
	probe := echo{src: m.stackAddrs[0], dst: m.stackAddrs[0]}
	diverted := probe
	diverted.to = to
	m.ring.control(diverted)
	m.ring.control(probe)
	w := newWireguard()
	if n, err := m.tun.Read(w.bufs, w.sizes, 16); n != 1 || err != nil {
		t.Errorf("%d packets came out, %v, want the one that is not diverted", n, err)
	}
	m.div.forget(held)
	m.ring.control(diverted)
	if n, err := m.tun.Read(w.bufs, w.sizes, 16); n != 1 || err != nil || len(m.div.marked) != 1 {
		t.Errorf("%d packets came out, %v, with %d marks, want one of each", n, err, len(m.div.marked))
	}
}

// A peer that names the addresses of other ones as its own, and moves, gets nothing that goes there.
func TestAddressesOfOthersAreNotPinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDual(t, [2]int{2, 2}, nil)
		defer d.close()
		d.await()
		m := d.mesh[0]
		named, heard := netip.MustParseAddrPort("192.0.2.3:51820"), netip.MustParseAddrPort("192.0.2.4:4500")
		peers := []Peer{
			m.table.Load().cfgs[0],
			{ID: 3, Name: "named", PublicKey: NewPrivateKey().Public(), Endpoint: named, Prefixes: podCIDRs(3)[:1]},
			{ID: 4, Name: "heard", PublicKey: NewPrivateKey().Public(), Prefixes: podCIDRs(4)[:1]},
		}
		peers[0].Others = []netip.AddrPort{dualAddrs[1][1], named, heard}
		if err := m.Set(Config{Peers: peers}); err != nil {
			t.Fatal(err)
		}
		for _, p := range peers[1:] {
			neverFreed = append(neverFreed, m.dev.LookupPeer(device.NoisePublicKey(p.PublicKey)))
		}
		m.table.Load().byID[4].address.Store(&heard)
		d.talk(time.Second, 100, 0, 1)
		d.cut(0, 0, true)
		d.cut(1, 0, true)
		for began := time.Now(); m.div.pins.Load() == nil; {
			if d.talk(50*time.Millisecond, 100, 0, 1); time.Since(began) > 10*time.Second {
				t.Fatal("the peer did not move")
			}
		}
		msg := []byte("\x04 a message of data")
		for at, want := range map[netip.AddrPort]netip.AddrPort{
			dualAddrs[1][0]: dualAddrs[1][1], named: named, heard: heard,
		} {
			ep, err := m.div.ParseEndpoint(at.String())
			if err != nil {
				t.Fatal(err)
			}
			var got netip.AddrPort
			d.under.Capture(func(g overlaytest.Datagram) {
				if slices.Equal(g.Payload, msg) {
					got = g.To
				}
			})
			if err := m.div.Send([][]byte{msg}, ep); err != nil || got != want {
				t.Errorf("a datagram to %v went to %v, %v, want %v", at, got, err, want)
			}
		}
		d.under.Capture(nil)
	})
}

// The pins of one peer end without those of another one, which may have been at the same address.
func TestUnpinLeavesPinsOfOthers(t *testing.T) {
	d, a := newDiverter(nil), dualAddrs[0]
	left, stays := &peer{id: 2}, &peer{id: 3}
	d.pin(left, a, nil)
	d.pin(stays, a[:1], nil)
	d.unpin(left)
	if pins := d.pins.Load(); pins == nil || len(*pins) != 1 || (*pins)[a[0]].of != stays {
		t.Errorf("the pins are %v, want the other peer's alone", pins)
	}
	d.unpin(stays)
	if pins := d.pins.Load(); pins != nil {
		t.Errorf("the pins are %v at last, want none", pins)
	}
}
