package packet_test

import (
	"bytes"
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// ParseFrame accepts from a pod what PutTCP writes, and the completed checksum is right.
func TestPutTCP(t *testing.T) {
	for _, c := range []struct {
		name, src, dst string
		options        []byte
		n, mss         int
		gso            uint8
	}{
		{"a bare acknowledgement", "192.0.2.1", "10.244.1.10", nil, 0, 1380, packet.GSONone},
		{"a SYN with options", "192.0.2.1", "10.244.1.10", []byte{2, 4, 5, 0x64}, 0, 1380, packet.GSONone},
		{"one segment", "192.0.2.1", "10.244.1.10", nil, 1380, 1380, packet.GSONone},
		{"a superframe", "192.0.2.1", "10.244.1.10", nil, 5000, 1380, packet.GSOTCPv4},
		{"IPv6", "2001:db8::1", "fd00:10:244:1::a", nil, 7, 1360, packet.GSONone},
		{"a superframe of IPv6", "2001:db8::1", "fd00:10:244:1::a", nil, 5000, 1360, packet.GSOTCPv6},
	} {
		t.Run(c.name, func(t *testing.T) {
			tuple := packet.Tuple{
				Src: packet.AddrFrom(netip.MustParseAddr(c.src)), SrcPort: 443,
				Dst: packet.AddrFrom(netip.MustParseAddr(c.dst)), DstPort: 40000, Proto: packet.TCP,
			}
			frame := bytes.Repeat([]byte{0xa5}, packet.HeadLen+packet.TCPHeadLen(&tuple.Src)+len(c.options)+c.n)
			h := packet.TCPHeader{Seq: 1 << 31, Ack: 7, Flags: packet.ACK | packet.PSH, Window: 512, Options: c.options}
			head, vnet := packet.PutTCP(frame[packet.HeadLen:], &tuple, &h, c.n, c.mss)
			if head != len(frame)-packet.HeadLen-c.n {
				t.Errorf("headers of %d bytes", head)
			}
			var made packet.Packet
			if f := made.ParseIP(frame[packet.HeadLen:]); f != packet.Good {
				t.Fatalf("fault %d", f)
			}
			made.VNet = vnet
			made.PutHead(frame, packet.MAC{2, 1}, packet.MAC{2, 2})
			var p packet.Packet
			if f := p.ParseFrame(frame); f != packet.Good {
				t.Fatalf("the frame has fault %d", f)
			}
			if p.Tuple != tuple || p.TCPFlags != h.Flags || p.VNet != vnet || p.VNet.GSOType != c.gso || len(p.IP)-p.Payload != c.n {
				t.Errorf("parsed as %+v", p)
			}
			if s := p.Segment(); s != (packet.Segment{Seq: h.Seq, Ack: h.Ack, Flags: h.Flags}) {
				t.Errorf("segment %+v", s)
			}
			if c.gso == packet.GSONone {
				if p.CompleteChecksum(); !p.ChecksumOK() {
					t.Error("the checksum is wrong")
				}
			}
		})
	}
}
