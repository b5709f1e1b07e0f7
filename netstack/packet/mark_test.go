package packet

import (
	"bytes"
	"net/netip"
	"testing"
)

// A marked segment is right for everybody else, and unmarked it is what it was. A partial checksum does not cover the
// TCP header, and stays as it is.
func TestServiceMark(t *testing.T) {
	for _, addrs := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00::2"}} {
		for _, partial := range []bool{false, true} {
			src, dst := AddrFrom(netip.MustParseAddr(addrs[0])), AddrFrom(netip.MustParseAddr(addrs[1]))
			ip := make([]byte, TCPHeadLen(&src))
			_, vnet := PutTCP(ip, &Tuple{Src: src, Dst: dst, SrcPort: 4000, DstPort: 80, Proto: TCP}, &TCPHeader{Flags: SYN, Window: 1000}, 0, 1400)
			var p Packet
			if p.ParseIP(ip) != Good {
				t.Fatal("it cannot be parsed")
			}
			if p.VNet = vnet; !partial {
				p.CompleteChecksum()
			}
			before := bytes.Clone(p.IP)
			if p.TakeServiceMark() {
				t.Errorf("%v: a segment without a mark had one", addrs)
			}
			for range 2 { // marking it again changes nothing
				if p.MarkService(); !p.ChecksumOK() || bytes.Equal(p.IP, before) {
					t.Errorf("%v, partial %v: marked: checksum ok is %v", addrs, partial, p.ChecksumOK())
				}
			}
			if partial {
				whole := p
				whole.IP = bytes.Clone(p.IP)
				if whole.CompleteChecksum(); !whole.ChecksumOK() {
					t.Errorf("%v: completed, the checksum is wrong", addrs)
				}
			}
			if !p.TakeServiceMark() || !bytes.Equal(p.IP, before) {
				t.Errorf("%v, partial %v: unmarked it is\n%x, was\n%x", addrs, partial, p.IP, before)
			}
		}
	}
}
