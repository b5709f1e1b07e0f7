package superframe

import (
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
)

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

func TestHeader(t *testing.T) {
	for _, ends := range [][2]string{{"192.0.2.1:53", "10.244.1.10:5000"}, {"[2001:db8::1]:53", "[fd00:10:244:1::10]:5000"}} {
		from, to := netip.MustParseAddrPort(ends[0]), netip.MustParseAddrPort(ends[1])
		tuple := packet.Tuple{Src: packet.AddrFrom(from.Addr()), SrcPort: from.Port(), Dst: packet.AddrFrom(to.Addr()), DstPort: to.Port(), Proto: packet.UDP}
		h := HeaderOf(&tuple)
		for _, c := range []struct{ n, size int }{{0, 0}, {1, 1}, {1000, 1000}, {3500, 1000}, {maxIP - h.Len(), 1400}} {
			ip := make([]byte, h.Len()+c.n)
			for i := range ip {
				ip[i] = 0xa5 // leftovers of earlier packets
			}
			vnet := h.put(ip, c.size, dgram.Head{})
			var p packet.Packet
			fault := p.ParseFrame(asFrame(ip, vnet))
			if fault != packet.Good || p.Tuple != tuple || len(p.IP)-p.Payload != c.n || p.VNet != vnet {
				t.Fatalf("%s, %+v: fault %d, %+v, %+v; put said %+v", from, c, fault, p.Tuple, p.VNet, vnet)
			}
			if super := c.n > c.size; super != (p.VNet.GSOType == packet.GSOUDPL4) || super && int(p.VNet.GSOSize) != c.size {
				t.Errorf("%s, %+v: %+v", from, c, p.VNet)
			}
			var cut packet.Segmenter
			cut.Reset(&p, nil)
			for b := make([]byte, cut.Size()); ; {
				n := cut.Next(b)
				if n == 0 {
					break
				}
				var one packet.Packet
				if one.ParseIP(b[:n]) != packet.Good || !one.ChecksumOK() {
					t.Fatalf("%s, %+v: a segment's checksum is wrong", from, c)
				}
			}
		}
		var p packet.Packet
		if p.ParseIP(h.Quote()) != packet.Good || p.Tuple != tuple.Reverse() {
			t.Errorf("%s: the quote is of %+v", from, p.Tuple)
		}
	}
}
