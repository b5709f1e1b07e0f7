package netstack

import (
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// icmp is an ICMP message of the family of src.
func icmp(src, dst string, kind, code uint8, body []byte) netstacktest.Spec {
	s := netstacktest.Spec{
		Src: netip.AddrPortFrom(netip.MustParseAddr(src), 0), Dst: netip.AddrPortFrom(netip.MustParseAddr(dst), 0),
		Proto: packet.ICMPv4, ICMPType: kind, ICMPCode: code, Payload: body,
	}
	if s.Src.Addr().Is6() {
		s.Proto = packet.ICMPv6
	}
	return s
}

// silent fails when anybody gets anything, now that all that was sent has been counted.
func (w *world) silent() {
	w.t.Helper()
	for name, d := range w.devices {
		if len(d.Frames()) > 0 {
			var p packet.Packet
			p.ParseFrame(<-d.Frames())
			w.t.Errorf("%s got %s", name, describe(w.t, &p))
		}
	}
	if len(w.link.Sent()) > 0 {
		w.t.Errorf("the link got %s", w.describeSent(<-w.link.Sent()))
	}
}

// TestLinkOnly: what hosts believe of neighbours alone passes between no two ends: neither pods here, nor the host, nor other nodes.
func TestLinkOnly(t *testing.T) {
	w := newWorld(t)
	w.exchange(exchange{"a", datagram("10.244.1.10:1000", "10.244.1.11:80"), "b", "udp 10.244.1.10:1000 > 10.244.1.11:80"})
	quoted := datagram("10.244.1.10:1000", "10.244.1.11:80").IP()
	sources := map[string][2]string{
		"b": {"10.244.1.11", "fd00:10:244:1::11"}, "host": {"172.31.0.11", ""}, "node-2": {"10.244.2.10", "fd00:10:244:2::10"},
		"stock": {"10.244.9.7", ""}, "node-2 encap": {"198.51.100.7", "2001:db8::7"},
	}
	var sent uint64
	for from, src := range sources {
		if src[0] != "" {
			for _, kind := range []uint8{5, 9, 10} {
				w.from(from, icmp(src[0], "10.244.1.10", kind, 1, quoted))
				sent++
			}
		}
		for kind := uint8(133); kind <= 137 && src[1] != "" && from != "node-2 encap"; kind++ {
			body := append(netip.MustParseAddr("fd00:10:244:1::11").AsSlice(), 2, 1, 2, 0, 0, 0, 0, 2)
			s := icmp(src[1], "fd00:10:244:1::10", kind, 0, body)
			w.from(from, s)
			sent++
		}
	}
	w.counted(LinkOnly, sent)
	w.silent()
	if n := w.node.flows.Stats().Len; n != 1 {
		t.Errorf("%d flows are in the table, want the first one alone", n)
	}
}

// TestNeighborSolicitation: a pod's own question is still answered, for every address.
func TestNeighborSolicitation(t *testing.T) {
	w := newWorld(t)
	body := append(netip.MustParseAddr("fd00:10:244:1::11").AsSlice(), 1, 1, 2, 0, 0, 0, 0, 1)
	frame := icmp("fd00:10:244:1::10", "ff02::1:ff00:11", 135, 0, body).Frame(w.macs["a"], packet.MAC{0x33, 0x33, 0xff, 0, 0, 0x11})
	frame[packet.HeadLen+7] = 255 // the hop limit that says that no router was in between
	w.devices["a"].Send(frame)
	w.expect("a", "icmp 136 fd00:10:244:1::11 > fd00:10:244:1::10 id 0")
}

// TestSourceRoute: packets that carry a route of their sender's go nowhere, from pods and other nodes.
func TestSourceRoute(t *testing.T) {
	w := newWorld(t)
	option := func(s netstacktest.Spec, opt ...byte) []byte {
		ip := s.IP()
		ip = append(ip[:20:20], append(opt, ip[20:]...)...)
		ip[0] = 0x40 | byte(5+len(opt)/4)
		ip[2], ip[3] = byte(len(ip)>>8), byte(len(ip))
		ip[10], ip[11] = 0, 0
		sum := ^packet.Checksum(ip[:20+len(opt)], 0)
		ip[10], ip[11] = byte(sum>>8), byte(sum)
		return ip
	}
	bad := [][]byte{{131, 7, 4, 10, 244, 1, 11, 0}, {137, 7, 4, 10, 244, 1, 11, 0}, {7, 9, 4, 0}, {1, 1, 1, 148}}
	for _, opt := range bad {
		frame := datagram("10.244.1.10:1000", "10.244.1.11:80").Frame(w.macs["a"], packet.MAC{})[:packet.HeadLen]
		w.devices["a"].Send(append(frame, option(datagram("10.244.1.10:1000", "10.244.1.11:80"), opt...)...))
		w.node.FromLink(node2, [][]byte{option(datagram("10.244.2.10:1000", "10.244.1.11:80"), opt...)})
	}
	w.counted(Malformed, uint64(2*len(bad)))
	w.silent()
	// Another option is no reason.
	w.node.FromLink(node2, [][]byte{option(datagram("10.244.2.10:1000", "10.244.1.11:80"), 148, 4, 0, 0)})
	w.expect("b", "udp 10.244.2.10:1000 > 10.244.1.11:80")
}
