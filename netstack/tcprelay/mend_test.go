package tcprelay

import (
	"cmp"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

// stepped is an open connection to a far pod that only the test pumps, and whose round trip takes so long that no timer
// goes off. The pod has room for 64,000 bytes.
type stepped struct {
	*conn
	t       *testing.T
	client  int      // writes what the pod is sent
	sent    []uint32 // the numbers of segments with data, counted from the first one's
	told    []uint32 // the numbers that segments without data acknowledge
	longest int      // payload of a segment since sent was emptied
	start   uint32
	mtu     int // of the path
}

func newStepped(t *testing.T, o offer) *stepped {
	t.Helper()
	poller, err := poll.New(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = poller.Close() })
	s := &stepped{t: t, mtu: 1420}
	r := New(Options{
		Poller: poller, MTU: func() int { return 1420 }, Far: func(packet.Addr) (int, bool) { return s.mtu, true },
		Refuse: func(*packet.Packet, packet.ICMPError, packet.Addr) {},
		Send: func(ip []byte, vnet packet.VNetHdr) {
			var p packet.Packet
			if p.ParseIP(ip) != packet.Good {
				return
			}
			if p.Len() == p.Payload {
				s.told = append(s.told, be.Uint32(p.IP[p.L4+8:]))
			} else {
				s.sent = append(s.sent, be.Uint32(p.IP[p.L4+4:])-s.start)
				s.longest = max(s.longest, min(p.Len()-p.Payload, cmp.Or(int(vnet.GSOSize), packet.MaxFrame)))
			}
		},
	})
	t.Cleanup(func() { _ = r.Close() })
	pod, client := packet.AddrFrom(netip.MustParseAddr("10.244.2.10")), packet.AddrFrom(netip.MustParseAddr("192.0.2.1"))
	c := newConn(r, packet.Tuple{Src: pod, SrcPort: 80, Dst: client, DstPort: 4000, Proto: packet.TCP}, open)
	s.conn = c
	c.pumping.Store(busy)
	c.account = r.bounds.begin(client)
	c.account.opened()
	c.goFar(1420)
	c.accept(o, 999)
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.fd, s.client = ends[0], ends[1]
	t.Cleanup(func() { _ = unix.Close(s.client) })
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.watch(0); err != nil {
		t.Fatal(err)
	}
	c.far.rtt.Sample(10 * time.Second)
	s.start = c.to.nxt
	c.to.una, c.from.lastAck = c.to.nxt, c.to.nxt
	c.next.Store(c.to.nxt)
	s.acks(0)
	t.Cleanup(func() { c.end(aborted) })
	return s
}

// acks has the pod acknowledge n bytes in all.
func (s *stepped) acks(n uint32) {
	s.t.Helper()
	s.mu.Lock()
	do := s.takeAck(1000, s.start+n, 64000, true)
	s.mu.Unlock()
	if do&work != 0 && !s.step() {
		s.t.Fatal("the connection is over")
	}
}

// says has the client say n bytes.
func (s *stepped) says(n int) {
	s.t.Helper()
	if _, err := unix.Write(s.client, make([]byte, n)); err != nil {
		s.t.Fatal(err)
	}
	if !s.step() {
		s.t.Fatal("the connection is over")
	}
}

// The third duplicate has the segment sent again that is missing, however much is believed to be on its way, and each
// acknowledgement of a part the next one.
func TestFarRepeatsAtOnce(t *testing.T) {
	const mss = 1380
	s := newStepped(t, offer{mss: mss})
	s.says(10 * mss)
	s.acks(mss)
	s.sent = nil
	for range 3 {
		s.acks(mss)
	}
	if len(s.sent) != 1 || s.sent[0] != mss {
		t.Fatalf("after three duplicates %v were sent, want %d", s.sent, mss)
	}
	s.sent = nil
	s.acks(2 * mss)
	if len(s.sent) == 0 || s.sent[0] != 2*mss {
		t.Fatalf("after a part %v were sent, want %d", s.sent, 2*mss)
	}
}

// When the path carries less, what is sent again fits it from the first segment on.
func TestFarRepairsFitThePath(t *testing.T) {
	const mss, narrow = 1380, 1160
	s := newStepped(t, offer{mss: mss})
	s.says(10 * mss)
	s.mtu = narrow + 40
	for _, lost := range []func(){func() {
		for range 4 {
			s.acks(0)
		}
	}, s.farExpired} {
		s.sent, s.longest = nil, 0
		if lost(); len(s.sent) == 0 || s.longest > narrow {
			t.Errorf("%v were sent, the longest with %d bytes, want %d at most", s.sent, s.longest, narrow)
		}
	}
}

// What never filled the window does not make it grow.
func TestFarWindowOfSmallMessages(t *testing.T) {
	s := newStepped(t, offer{mss: 1380})
	before := s.far.window.Size()
	for n := range uint32(10) {
		s.says(1000)
		s.acks((n + 1) * 1000)
	}
	if got := s.far.window.Size(); got != before {
		t.Errorf("the window is %d after small messages, and was %d", got, before)
	}
	s.says(before)
	s.acks(10_000 + uint32(before))
	if got := s.far.window.Size(); got != 2*before {
		t.Errorf("the window is %d after it was filled, want %d", got, 2*before)
	}
}

// A window that was announced before another one that came first is not believed (RFC 9293 3.10.7.4).
func TestOvertakenWindow(t *testing.T) {
	s := newStepped(t, offer{mss: 1380})
	s.says(3000)
	for _, x := range []struct {
		what            string
		seq, acked, wnd uint32
		want            uint32 // the window that is believed then
	}{
		{"something new acknowledged", 1000, 1000, 5000, 5000},
		{"the window closes", 1500, 1000, 2000, 2000},
		{"overtaken by that", 1000, 1000, 5000, 2000},
		{"overtaken by both", 900, 0, 64000, 2000},
		{"it opens without data", 1500, 1000, 6000, 6000},
		{"overtaken by that, at the same number", 1500, 1000, 2000, 6000},
		{"no memory", 1500, 1000, 0, 0},
		{"memory again", 1500, 1000, 6000, 6000},
		{"data of an earlier number, repeated, acknowledges something new", 1200, 2000, 3000, 3000},
		{"the window opens with later data", 1600, 2000, 7000, 7000},
		{"overtaken by that, and full", 1500, 2000, 0, 7000},
		{"later data announces the same", 1800, 2000, 7000, 7000},
		{"overtaken by that only", 1700, 2000, 3000, 7000},
	} {
		s.mu.Lock()
		do := s.takeAck(x.seq, s.start+x.acked, x.wnd, true)
		s.mu.Unlock()
		if do&work != 0 && !s.step() {
			t.Fatalf("%s: the connection is over", x.what)
		}
		if got := uint32(s.acked.Load()); got != x.want {
			t.Errorf("%s: a window of %d is believed, want %d", x.what, got, x.want)
		}
	}
}

// A far pod is told how much a slow client has taken while more waits for that client, and not at the end alone.
func TestFarIsToldOfSmallSteps(t *testing.T) {
	s := newStepped(t, offer{mss: 1380})
	const size = 20_000
	for kept := 0; kept < 300_000; kept = s.from.keptLen {
		s.mu.Lock()
		s.takeData(s.from.next, make([]byte, size), false)
		s.mu.Unlock()
	}
	s.told = nil
	first := uint32(s.received.Load() >> 32)
	buf := make([]byte, size)
	for s.from.keptLen > 100_000 {
		if _, err := unix.Read(s.client, buf); err != nil {
			t.Fatal(err)
		}
		s.drain()
	}
	last := first
	for _, at := range s.told {
		if step := at - last; step > 3*size {
			t.Errorf("the pod was told of %d bytes at once", step)
		}
		last = at
	}
	if now := uint32(s.received.Load() >> 32); now-last > 3*size || now-first < 100_000 {
		t.Errorf("of %d bytes that the client's socket has accepted since, the pod was told of %d", now-first, last-first)
	}
}
