package tcprelay

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

// A pod that has no room for what is on its way, even if that is only the end of the stream, is probed as long as it
// answers (RFC 9293 3.8.6.1), because its reader may sleep for hours. A pod that does not answer is given up. So is a
// pod that has room and acknowledges nothing.
func TestFullPodIsNotGivenUp(t *testing.T) {
	for _, c := range []struct {
		name    string
		window  uint16 // that the pod announces when it is asked
		silent  bool
		givenUp bool
	}{
		{name: "full", window: 0},
		{name: "silent", silent: true, givenUp: true},
		{name: "with room", window: 100, givenUp: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := waiting(t)
			for range 10 {
				// The deadline passes, as if the pod had not been heard since its last answer.
				conn.to.deadline, conn.to.resendAt = conn.r.now(), conn.r.now()
				if !c.silent {
					conn.mu.Lock()
					conn.take(fromPod(t, conn, c.window), new(Turn))
					conn.mu.Unlock()
				}
				conn.note(timeUp)
				if lives := conn.step(); !lives {
					if !c.givenUp {
						t.Error("it was given up")
					}
					return
				}
			}
			if conn.end(aborted); c.givenUp {
				t.Error("it was not given up")
			}
		})
	}
}

// waiting returns an open connection that only the test pumps. The pod was sent the end of the stream and has not
// acknowledged it.
func waiting(t *testing.T) *conn {
	t.Helper()
	poller, err := poll.New(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = poller.Close() })
	r := New(Options{
		Poller: poller, Send: func([]byte, packet.VNetHdr) {}, MTU: func() int { return 1420 },
		Refuse: func(*packet.Packet, packet.ICMPError, packet.Addr) {},
	})
	t.Cleanup(func() { _ = r.Close() })
	pod, far := packet.AddrFrom(netip.MustParseAddr("10.244.1.10")), packet.AddrFrom(netip.MustParseAddr("192.0.2.1"))
	key := packet.Tuple{Src: pod, SrcPort: 1, Dst: far, DstPort: 2, Proto: packet.TCP}
	c := newConn(r, key, open)
	c.pumping.Store(busy)
	c.account = r.bounds.begin(key.Src)
	c.account.opened()
	c.accept(offer{mss: 1380}, 999)
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(ends[1]) })
	c.fd = ends[0]
	if err := c.watch(0); err != nil {
		t.Fatal(err)
	}
	c.to.una = c.to.nxt
	c.next.Store(c.to.nxt)
	c.from.lastAck = c.to.nxt
	c.acked.Store(uint64(c.to.nxt) << 32)
	c.bye()
	return c
}

// fromPod returns a segment that acknowledges nothing new.
func fromPod(t *testing.T, c *conn, window uint16) *packet.Packet {
	t.Helper()
	b := make([]byte, 60)
	h := packet.TCPHeader{Seq: c.from.next, Ack: c.from.lastAck, Window: window, Flags: packet.ACK}
	n, _ := packet.PutTCP(b, &c.key, &h, 0, 0)
	p := new(packet.Packet)
	if fault := p.ParseIP(b[:n]); fault != packet.Good {
		t.Fatalf("fault %d", fault)
	}
	return p
}
