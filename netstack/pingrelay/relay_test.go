package pingrelay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/reassemble"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/userns"
)

const podMTU = 1420

var families = []struct{ name, pod, outside, nowhere string }{
	{"IPv4", "10.244.1.10", "192.0.2.1", "198.51.100.1"},
	{"IPv6", "fd00:10:244:1::10", "2001:db8::1", "2001:db8:100::1"},
}

// The tests' network is a loopback interface with one address of each family outside of the loopback ranges. Its kernel
// answers pings.
func TestMain(m *testing.M) {
	userns.Maybe()
	if userns.Inside() {
		if err := outside(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	userns.Main(m)
}

func outside() error {
	ns, err := tap.CurrentNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := tap.EnableUnprivilegedPing(ns); err != nil {
		return err
	}
	return netstacktest.Outside(netip.MustParseAddr(families[0].outside), netip.MustParseAddr(families[1].outside))
}

// world is a relay, and the packets that it sends to pods.
type world struct {
	t      *testing.T
	relay  *Relay
	toPod  chan []byte
	pieces *reassemble.Table
}

func newWorld(t *testing.T, o Options) *world {
	t.Helper()
	w := &world{t: t, toPod: make(chan []byte, 1000), pieces: reassemble.New(reassemble.Options{Max: 8})}
	var err error
	if o.Poller, err = poll.New(1); err != nil {
		t.Fatal(err)
	}
	o.MTU = func() int { return podMTU }
	o.Send = func(ip []byte, _ packet.VNetHdr) { w.toPod <- bytes.Clone(ip) }
	o.Refuse = func(p *packet.Packet, why packet.ICMPError, _ packet.Addr) {
		ip := make([]byte, 1280)
		w.toPod <- ip[:packet.PutICMPError(ip, p, why, p.Tuple.Dst, 0)]
	}
	w.relay = New(o)
	t.Cleanup(func() {
		w.relay.Close()
		if err := o.Poller.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// echo returns a pod's echo request.
func echo(t *testing.T, pod, to string, id uint16, data []byte) *packet.Packet {
	t.Helper()
	s := netstacktest.Spec{
		Src: netip.AddrPortFrom(netip.MustParseAddr(pod), id), Dst: netip.AddrPortFrom(netip.MustParseAddr(to), 0),
		Proto: packet.ICMPv4, ICMPType: request4, Payload: data, MayFrag: true,
	}
	if s.Src.Addr().Is6() {
		s.Proto, s.ICMPType = packet.ICMPv6, request6
	}
	ip := s.IP()
	p := new(packet.Packet)
	if fault := p.ParseIP(ip); fault != packet.Good || !p.ChecksumOK() {
		t.Fatalf("fault %d", fault)
	}
	p.DontFragment = false
	return p
}

// hear returns the next packet for a pod, reassembled.
func (w *world) hear() *packet.Packet {
	w.t.Helper()
	for {
		select {
		case ip := <-w.toPod:
			p := new(packet.Packet)
			if fault := p.ParseIP(ip); fault != packet.Good || len(ip) > podMTU {
				w.t.Fatalf("a packet of %d bytes for the pod: fault %d", len(ip), fault)
			}
			if p.Frag != packet.NoFrag {
				var whole []byte
				w.pieces.Add(p, p.Tuple.Src, func(ip []byte) { whole = bytes.Clone(ip) })
				if whole == nil {
					continue
				}
				if fault := p.ParseIP(whole); fault != packet.Good {
					w.t.Fatalf("fault %d", fault)
				}
			}
			if !p.ChecksumOK() {
				w.t.Fatal("a wrong checksum")
			}
			return p
		case <-netstacktest.GiveUp(w.t):
			w.t.Fatal("nothing came for the pod")
		}
	}
}

func (w *world) ping(p *packet.Packet) {
	w.t.Helper()
	if mtu, err := w.relay.Send(p); err != nil {
		w.t.Fatalf("%d bytes: %v, MTU %d", p.Len(), err, mtu)
	}
}

func TestThereAndBack(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t, Options{})
			for i, n := range []int{0, 56, 1300, 1400, 5000, 65000} {
				data := bytes.Repeat([]byte{byte(i), 1, 2, 3, 4, 5, 6}, n/7+1)[:n]
				p := echo(t, f.pod, f.outside, 4711, data)
				w.ping(p)
				got := w.hear()
				if got.Tuple != p.Tuple.Reverse() || !bytes.Equal(got.IP[got.Payload:], data) {
					t.Fatalf("%d bytes: %d came back from %s with identifier %d", n, got.Len()-got.Payload, got.Tuple.Src, got.Tuple.SrcPort)
				}
			}
			if n := w.relay.Stats().Held; n != 1 {
				t.Errorf("%d sockets for one ping", n)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	for _, f := range families {
		w := newWorld(t, Options{})
		if _, err := w.relay.Send(echo(t, f.pod, f.nowhere, 1, nil)); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s: %v", f.name, err)
		}
	}
}

// An ICMP error from a router reaches the pod as an error about the pod's own request.
func TestErrorIsTold(t *testing.T) {
	// The address is on the link of a bridge without ports, so the host itself reports that it is unreachable.
	const name = "hole"
	if err := errors.Join(tap.NewBridge(nil, name, 1500), tap.SetUp(nil, name), tap.AddAddr(nil, name, netip.MustParsePrefix("198.51.104.1/24")),
		tap.SetSysctl(nil, "net.ipv4.neigh.hole.retrans_time_ms", "50")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.DeleteLink(nil, name) })
	w := newWorld(t, Options{})
	p := echo(t, families[0].pod, "198.51.104.9", 99, []byte("anybody there?"))
	p.IP[p.L4+6], p.IP[p.L4+7] = 0, 5 // the sequence number
	w.ping(p)
	e := w.hear()
	var quoted packet.Packet
	if !e.Embedded(&quoted) || quoted.Tuple != p.Tuple || quoted.IP[quoted.L4+7] != 5 {
		t.Fatalf("the pod was told of %+v, want %+v", quoted.Tuple, p.Tuple)
	}
	if e.ICMPType != 3 || e.ICMPCode != 1 {
		t.Errorf("the pod was told %d, %d", e.ICMPType, e.ICMPCode)
	}
}

// A pod that pings with ever new identifiers takes nothing from another pod.
func TestFairShares(t *testing.T) {
	w := newWorld(t, Options{Max: 16})
	modest := echo(t, "10.244.1.11", "192.0.2.1", 5, []byte("live"))
	w.ping(modest)
	w.hear()
	for id := range uint16(1024) {
		w.ping(echo(t, "10.244.1.10", "192.0.2.1", id, nil))
		w.hear()
	}
	s, err := w.relay.find(key{modest.Tuple.Src, modest.Tuple.Dst, 5})
	if s == nil || err != nil {
		t.Fatal("another pod's socket was lost")
	}
	s.release()
	w.ping(modest)
	if got := w.hear(); got.Tuple != modest.Tuple.Reverse() {
		t.Errorf("%+v came back", got.Tuple)
	}
	newcomer := echo(t, "10.244.1.12", "192.0.2.1", 5, nil)
	w.ping(newcomer)
	if got := w.hear(); got.Tuple != newcomer.Tuple.Reverse() {
		t.Errorf("%+v came back", got.Tuple)
	}
	if s := w.relay.Stats(); s.Held > 16 || s.TakenFromOwn == 0 || s.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

func TestEnds(t *testing.T) {
	w := newWorld(t, Options{Idle: time.Minute})
	for id := range uint16(3) {
		w.ping(echo(t, "10.244.1.10", "192.0.2.1", id, nil))
		w.ping(echo(t, "10.244.1.11", "192.0.2.1", id, nil))
	}
	for range 6 {
		w.hear()
	}
	held := func() int { return w.relay.Stats().Held }
	w.relay.Forget(netip.MustParseAddr("10.244.1.10"))
	if n := held(); n != 3 {
		t.Errorf("%d sockets are left when one of two pods is gone", n)
	}
	w.relay.Sweep(w.relay.start.Add(40 * time.Second))
	w.ping(echo(t, "10.244.1.11", "192.0.2.1", 1, nil))
	w.hear()
	w.relay.Sweep(w.relay.start.Add(61 * time.Second))
	if n := held(); n != 1 {
		t.Errorf("%d sockets are left, want the one that was used", n)
	}
	w.relay.Close()
	if _, err := w.relay.Send(echo(t, "10.244.1.11", "192.0.2.1", 1, nil)); !errors.Is(err, net.ErrClosed) || held() != 0 {
		t.Errorf("after Close: %v, %d sockets", err, held())
	}
}
