package overlay_test

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/overlay/overlaytest"
	"tapestry.dev/tapestry/test/awake"
)

var (
	addrs = [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820"), netip.MustParseAddrPort("192.0.2.2:51820")}
	cidrs = [2]netip.Prefix{netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("10.1.2.0/24")}
)

// world is two Meshes on an underlay in memory.
type world struct {
	t     *testing.T
	under *overlaytest.Underlay
	keys  [2]overlay.PrivateKey
	mesh  [2]*overlay.Mesh
	got   [2]atomic.Int64 // packets received
	bytes [2]atomic.Int64
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, under: overlaytest.New(1)}
	for i := range w.keys {
		w.keys[i] = overlay.NewPrivateKey()
	}
	for i := range w.mesh {
		w.start(i)
	}
	return w
}

func (w *world) start(i int) {
	w.t.Helper()
	m, err := overlay.New(overlay.Options{
		PrivateKey: w.keys[i], Bind: w.under.Bind(addrs[i]), StackAddrs: []netip.Addr{cidrs[i].Addr().Next()},
		Logger: slog.New(slog.DiscardHandler),
		Receive: func(_ uint64, packets [][]byte) {
			w.got[i].Add(int64(len(packets)))
			for _, p := range packets {
				w.bytes[i].Add(int64(len(p)))
			}
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.mesh[i] = m
	far := 1 - i
	err = m.Set(overlay.Config{Peers: []overlay.Peer{{
		ID: uint64(far + 1), Name: "far", PublicKey: w.keys[far].Public(), Endpoint: addrs[far],
		Prefixes: []netip.Prefix{cidrs[far]}, StackAddrs: []netip.Addr{cidrs[far].Addr().Next()}, Tapestry: true,
	}}})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	w.mesh[0].Close()
	w.mesh[1].Close()
	w.under.Close()
}

func (w *world) impair(i overlaytest.Impairment) {
	w.under.Impair(addrs[0].Addr(), addrs[1].Addr(), i)
	w.under.Impair(addrs[1].Addr(), addrs[0].Addr(), i)
}

// send sends one UDP packet of n bytes from node 1 to node 2.
func (w *world) send(n int) {
	buf := make([]byte, packet.HeadLen+n, packet.MaxFrame)
	ip := buf[packet.HeadLen:]
	ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, byte(packet.UDP)
	binary.BigEndian.PutUint16(ip[2:], uint16(n))
	copy(ip[12:], cidrs[0].Addr().Next().Next().AsSlice())
	copy(ip[16:], cidrs[1].Addr().Next().Next().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
	binary.BigEndian.PutUint16(ip[24:], uint16(n-20))
	var p packet.Packet
	if f := p.ParseIP(ip); f != packet.Good {
		w.t.Fatalf("bad packet: fault %d", f)
	}
	w.mesh[0].Send(&p, 2, nil)
}

// within waits until ok reports true, at most d, and returns how long it took, both without the time in which the
// machine lets nobody run. d is generous because of the race detector; a test of something that must be quick compares
// the result.
func (w *world) within(d time.Duration, what string, ok func() bool) time.Duration {
	w.t.Helper()
	clock := awake.Start()
	defer clock.Stop()
	for ; clock.Now() < d; time.Sleep(5 * time.Millisecond) {
		if ok() {
			return clock.Now()
		}
	}
	w.t.Fatalf("not within %v: %s", d, what)
	return 0
}

func (w *world) await() {
	w.t.Helper()
	w.within(5*time.Second, "session", func() bool {
		return w.mesh[0].Status()[0].AnswerAge >= 0 && w.mesh[1].Status()[0].AnswerAge >= 0
	})
}

func TestBlackHole(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	w.await()
	if mtu := w.mesh[0].MTU(2); mtu != 1440 {
		t.Fatalf("MTU %d on a good path, want 1440", mtu)
	}
	w.impair(overlaytest.Impairment{MTU: 1400})
	took := w.within(8*time.Second, "smaller MTU", func() bool {
		w.send(1440)
		return w.mesh[0].MTU(2) == 1340
	})
	if took > 2*time.Second {
		t.Errorf("found after %v, want about one second", took)
	}
	before := w.got[1].Load()
	w.send(w.mesh[0].MTU(2))
	w.within(time.Second, "a packet of the new size", func() bool { return w.got[1].Load() == before+1 })
}

func TestLossyDelayedPath(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	w.impair(overlaytest.Impairment{Loss: 0.05, Delay: 40 * time.Millisecond, Reorder: 0.1, Late: 3 * time.Millisecond, Duplicate: 0.05})
	w.await()
	for range 500 {
		w.send(1440)
		time.Sleep(2 * time.Millisecond) // the packets are a stream and not a burst
	}
	w.within(time.Second, "most packets", func() bool { return w.got[1].Load() >= 440 })
	if mtu := w.mesh[0].MTU(2); mtu != 1440 {
		t.Errorf("MTU %d: loss was taken for a small path", mtu)
	}
	if n := w.got[1].Load(); n > 500 {
		t.Errorf("%d of 500 packets came through a path that duplicates some", n)
	}
}

func TestPartitionHeals(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	w.await()
	w.impair(overlaytest.Impairment{Partition: true})
	for range 150 {
		w.send(1000)
		time.Sleep(10 * time.Millisecond)
	}
	w.impair(overlaytest.Impairment{})
	before := w.got[1].Load()
	took := w.within(3*time.Second, "packets after the partition", func() bool {
		w.send(1000)
		return w.got[1].Load() > before
	})
	t.Logf("after %v", took)
	if mtu := w.mesh[0].MTU(2); mtu != 1440 {
		t.Errorf("MTU %d: a partition was taken for a small path", mtu)
	}
}

// A lost handshake is repeated soon, whichever end started it.
func TestRestartOnLossyPath(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	w.await()
	for range 3 {
		w.impair(overlaytest.Impairment{Loss: 0.15, Delay: time.Millisecond})
		w.mesh[1].Close()
		w.start(1)
		before := w.got[1].Load()
		w.within(9*time.Second, "packets", func() bool {
			w.send(100)
			return w.got[1].Load() > before
		})
		w.impair(overlaytest.Impairment{})
		w.await()
	}
}
