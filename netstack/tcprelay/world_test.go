package tcprelay_test

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/netstack/tcprelay"
)

const mtu = 1420

var (
	podMAC  = packet.MAC{2, 1}
	podIPs  = []netip.Addr{netip.MustParseAddr("10.244.1.10"), netip.MustParseAddr("fd00:10:244:1::a")}
	outside = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")}
	host    = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
)

// world is a Relay with one pod. What the pod calls the outside addresses is the host's loopback.
type world struct {
	*tcprelay.Relay
	pod *netstacktest.Pod
	// loss is how many of a thousand frames are lost, in each direction.
	loss atomic.Int64
	// pause is how long the pod is sent nothing after each segment with data, in nanoseconds; 0 means no limit. data
	// counts the segments with new data, and early those of them that did not wait.
	pause, ready, early, data atomic.Int64
	highest                   atomic.Uint32 // sequence number sent to the pod
	// noRoomHere gets a value when the relay announces a window of 0, noRoomInPod when the pod does.
	noRoomHere, noRoomInPod chan struct{}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldWith(t, nil)
}

func newWorldWith(t *testing.T, hold *tcprelay.Hold) *world {
	t.Helper()
	return newWorldAt(t, tcprelay.Options{Hold: hold, Asks: asks})
}

// newFarWorld is newWorldWith with the pod on another node.
func newFarWorld(t *testing.T, hold *tcprelay.Hold) *world {
	t.Helper()
	return newWorldAt(t, tcprelay.Options{Hold: hold, Far: elsewhere})
}

// asks has everybody known who is behind a connection to the host.
func asks(e packet.Endpoint) bool { return slices.Contains(host, e.Addr.Netip()) }

// newWorldAt is newWorld with Hold, Far and Asks of some Options.
func newWorldAt(t *testing.T, o tcprelay.Options) *world {
	t.Helper()
	poller, err := poll.New(2)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{noRoomHere: make(chan struct{}, 1), noRoomInPod: make(chan struct{}, 1)}
	dev := netstacktest.NewDevice()
	w.Relay = tcprelay.New(tcprelay.Options{
		Poller: poller,
		Hold:   o.Hold,
		Far:    o.Far,
		Asks:   o.Asks,
		MTU:    func() int { return mtu },
		Refuse: func(_ *packet.Packet, why packet.ICMPError, _ packet.Addr) {
			t.Errorf("the pod was told of ICMP error %d", why)
		},
		Pace: func(pod packet.Addr) (bool, time.Duration) {
			if pod != packet.AddrFrom(podIPs[0]) {
				return false, 0
			}
			return w.pause.Load() > 0, max(0, time.Duration(w.ready.Load()-time.Now().UnixNano()))
		},
		Send: func(ip []byte, vnet packet.VNetHdr) {
			var p packet.Packet
			if fault := p.ParseIP(ip); fault != packet.Good {
				t.Errorf("the relay sent a packet with fault %d", fault)
				return
			}
			p.VNet = vnet
			tellFull(&p, w.noRoomHere)
			w.notePace(&p)
			swap(&p, host, outside, func(t *packet.Tuple) *packet.Addr { return &t.Src })
			if w.lose() {
				return
			}
			frame := make([]byte, packet.HeadLen+len(ip))
			copy(frame[packet.HeadLen:], ip)
			p.PutHead(frame, tap.RouterMAC, podMAC)
			_ = dev.Write(frame) // a full queue loses frames
		},
	})
	if w.pod, err = netstacktest.NewPod(dev, podMAC, tap.RouterMAC, mtu, podIPs...); err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() {
		var p packet.Packet
		var turn tcprelay.Turn
		ran <- dev.Run(func(frame []byte) []byte {
			if p.ParseFrame(frame) == packet.Good && !w.lose() {
				tellFull(&p, w.noRoomInPod)
				swap(&p, outside, host, func(t *packet.Tuple) *packet.Addr { return &t.Dst })
				if !w.Deliver(&p, &turn, true) {
					w.refuse(t, dev, &p)
				}
			}
			return frame
		}, turn.End)
	}()
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if o.Hold == nil { // otherwise what had not ended yet is left to the next one
			w.gone(t)
		}
		w.pod.Close()
		_ = dev.Close()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if err := poller.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// tellFull sends to the channel when p announces a window of 0.
func tellFull(p *packet.Packet, to chan<- struct{}) {
	if p.TCPFlags&(packet.ACK|packet.SYN|packet.RST) != packet.ACK || binary.BigEndian.Uint16(p.IP[p.L4+14:]) != 0 {
		return
	}
	select {
	case to <- struct{}{}:
	default:
	}
}

// notePace counts whether a segment for a limited pod waited. Retransmissions do not wait.
func (w *world) notePace(p *packet.Packet) {
	n, pause := p.Len()-p.Payload, w.pause.Load()
	end := binary.BigEndian.Uint32(p.IP[p.L4+4:]) + uint32(n)
	if n == 0 || pause == 0 || w.data.Load() > 0 && int32(end-w.highest.Load()) <= 0 {
		return
	}
	w.highest.Store(end)
	if now := time.Now().UnixNano(); now < w.ready.Swap(now+pause) {
		w.early.Add(1)
	}
	w.data.Add(1)
}

// refuse answers a segment without a connection, as the stack does.
func (w *world) refuse(t *testing.T, dev *netstacktest.Device, p *packet.Packet) {
	swap(p, host, outside, func(t *packet.Tuple) *packet.Addr { return &t.Dst })
	frame := make([]byte, packet.HeadLen+60)
	n := packet.PutRST(frame[packet.HeadLen:], p)
	if n == 0 {
		return
	}
	var rst packet.Packet
	if rst.ParseIP(frame[packet.HeadLen:packet.HeadLen+n]) != packet.Good {
		t.Error("a malformed reset")
	}
	rst.PutHead(frame, tap.RouterMAC, podMAC)
	_ = dev.Write(frame[:packet.HeadLen+n])
}

func (w *world) lose() bool { return rand.Int64N(1000) < w.loss.Load() }

// swap replaces from's address by to's at one end of p.
func swap(p *packet.Packet, from, to []netip.Addr, end func(*packet.Tuple) *packet.Addr) {
	t := p.Tuple
	for i := range from {
		if a := end(&t); *a == packet.AddrFrom(from[i]) {
			*a = packet.AddrFrom(to[i])
			p.Rewrite(&t)
			return
		}
	}
}

// gone waits until no connection is left.
func (w *world) gone(t *testing.T) {
	t.Helper()
	deadline := netstacktest.GiveUp(t)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for w.Len() > 0 {
		select {
		case <-tick.C:
		case <-deadline:
			t.Errorf("%d connections are left", w.Len())
			return
		}
	}
}

// listen opens a TCP listener on the host; i chooses the family.
func listen(t testing.TB, i int) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: host[i].AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func accept(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(netstacktest.Until(t))
	return c
}

func port(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }

// egress connects from the pod to a server on the host.
func (w *world) egress(t *testing.T, i int) (pod, server net.Conn) {
	t.Helper()
	l := listen(t, i)
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	pod, err := w.pod.Dial(ctx, "tcp", netip.AddrPortFrom(outside[i], port(l.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pod.Close() })
	_ = pod.SetDeadline(netstacktest.Until(t))
	return pod, accept(t, l)
}

// joined is a client of the host that was joined to a server in the pod.
type joined struct {
	client, server net.Conn
	end            context.CancelFunc
	err            chan error // receives the result of Join
}

var seenAs = []netip.AddrPort{netip.MustParseAddrPort("203.0.113.7:4000"), netip.MustParseAddrPort("[2001:db8::7]:4000")}

// dialHost returns both ends of a connection to the host.
func dialHost(t *testing.T, i int) (client net.Conn, accepted *net.TCPConn) {
	t.Helper()
	l := listen(t, i)
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	_ = client.SetDeadline(netstacktest.Until(t))
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	return client, c
}

func (w *world) join(t *testing.T, i int) *joined {
	t.Helper()
	at := netip.AddrPortFrom(podIPs[i], 80)
	inPod, err := w.pod.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inPod.Close() })
	client, accepted := dialHost(t, i)
	ctx, end := context.WithCancel(t.Context())
	j := &joined{client: client, end: end, err: make(chan error, 1)}
	go func() { j.err <- w.Join(ctx, accepted, seenAs[i], at, nil) }()
	j.server = accept(t, inPod)
	return j
}
