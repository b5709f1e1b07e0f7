package udprelay

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/test/userns"
)

// The tests' network is a loopback interface with one address of each family outside of the loopback ranges, because
// ICMP errors must not come from loopback addresses.
func TestMain(m *testing.M) {
	userns.Maybe()
	if userns.Inside() {
		if err := netstacktest.Outside(netip.MustParseAddr(families[0].outside), netip.MustParseAddr(families[1].outside)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	userns.Main(m)
}

var be = binary.BigEndian

// podMTU is smaller than the MTU of the loopback, as a pod's MTU is smaller than its node's.
const podMTU = 1420

var families = []struct{ name, pod, outside string }{
	{"IPv4", "10.244.1.10:5000", "192.0.2.1"},
	{"IPv6", "[fd00:10:244:1::10]:5000", "2001:db8::1"},
}

// world is a relay, and the frames that it sends to pods.
type world struct {
	t     *testing.T
	relay *Relay
	toPod chan []byte // frames
}

func newWorld(t *testing.T, o Options) *world {
	t.Helper()
	w := &world{t: t, toPod: make(chan []byte, 10000)}
	var err error
	if o.Poller, err = poll.New(2); err != nil {
		t.Fatal(err)
	}
	if o.Idle == 0 {
		o.Idle = time.Minute
	}
	o.MTU = func() int { return podMTU }
	o.Send = func(ip []byte, vnet packet.VNetHdr) {
		w.toPod <- asFrame(ip, vnet)
		clear(ip) // the relay must not rely on ip's bytes after Send
	}
	o.Refuse = func(p *packet.Packet, why packet.ICMPError, _ packet.Addr) {
		ip := make([]byte, 1280)
		w.toPod <- asFrame(ip[:packet.PutICMPError(ip, p, why, p.Tuple.Dst, 0)], packet.VNetHdr{})
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

// asFrame makes a frame of a packet, as the pipeline does.
func asFrame(ip []byte, vnet packet.VNetHdr) []byte {
	head := make([]byte, packet.HeadLen)
	vnet.Encode(head)
	ether := packet.EtherIPv4
	if ip[0]>>4 == 6 {
		ether = packet.EtherIPv6
	}
	be.PutUint16(head[packet.HeadLen-2:], ether)
	return append(head, ip...)
}

// from makes a packet that the pod sends. size is the size of the datagrams in a superframe; 0 means one datagram.
func from(t testing.TB, s netstacktest.Spec, size int) *packet.Packet {
	t.Helper()
	s.Proto, s.Partial = packet.UDP, true
	frame := s.Frame(packet.MAC{2, 1}, packet.MAC{2, 2})
	at := packet.EthLen + 40
	if s.Src.Addr().Is4() {
		at = packet.EthLen + 20
	}
	v := packet.VNetHdr{Flags: packet.NeedsCsum, HdrLen: uint16(at + 8), CsumStart: uint16(at), CsumOffset: 6}
	if size > 0 {
		v.GSOType, v.GSOSize = packet.GSOUDPL4, uint16(size)
	}
	v.Encode(frame)
	p := new(packet.Packet)
	if fault := p.ParseFrame(frame); fault != packet.Good {
		t.Fatalf("the pod's frame: fault %d", fault)
	}
	return p
}

func (w *world) send(p *packet.Packet) {
	w.t.Helper()
	if mtu, err := w.relay.Send(p); err != nil {
		w.t.Fatalf("send %d bytes: %v, MTU %d", p.Len(), err, mtu)
	}
}

// frame waits for the next frame for a pod and checks what must hold for every frame.
func (w *world) frame() *packet.Packet {
	w.t.Helper()
	select {
	case f := <-w.toPod:
		p := new(packet.Packet)
		if fault := p.ParseFrame(f); fault != packet.Good {
			w.t.Fatalf("a frame for the pod: fault %d", fault)
		}
		if !p.ChecksumOK() {
			w.t.Fatal("a frame for the pod has a wrong checksum")
		}
		return p
	case <-netstacktest.GiveUp(w.t):
		w.t.Fatal("nothing came for the pod")
		return nil
	}
}

// datagrams reads frames until n datagrams have come, and returns their data.
func (w *world) datagrams(tuple packet.Tuple, n int) [][]byte {
	w.t.Helper()
	var out [][]byte
	for len(out) < n {
		p := w.frame()
		if p.Tuple != tuple {
			w.t.Fatalf("a frame of %+v, want %+v", p.Tuple, tuple)
		}
		var cut packet.Segmenter
		cut.Reset(p, nil)
		if cut.Size() > podMTU {
			w.t.Fatalf("a packet of %d bytes for a pod with MTU %d", cut.Size(), podMTU)
		}
		for {
			b := make([]byte, cut.Size())
			k := cut.Next(b)
			if k == 0 {
				break
			}
			var one packet.Packet
			if one.ParseIP(b[:k]) != packet.Good || !one.ChecksumOK() {
				w.t.Fatal("a segment is not right")
			}
			out = append(out, payload(&one))
		}
	}
	return out
}

// server opens a socket outside.
func server(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(netstacktest.Until(t))
	return c
}

func at(c net.PacketConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// hear returns the next datagram that arrives at c, and its sender.
func hear(t testing.TB, c *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	b := make([]byte, 65535)
	n, client, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n], client
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) + byte(i>>8) + seed
	}
	return b
}
