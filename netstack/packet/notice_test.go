package packet

import (
	"net/netip"
	"testing"
)

// A notice is a whole packet, with the tuple that it was made with, and no more than that.
func TestNotice(t *testing.T) {
	for _, ends := range [][2]string{{"203.0.113.50:1000", "198.51.100.1:443"}, {"[2001:db8:1b::50]:1000", "[2001:db8:c::1]:443"}} {
		src, dst := EndpointFrom(netip.MustParseAddrPort(ends[0])), EndpointFrom(netip.MustParseAddrPort(ends[1]))
		want := Tuple{Src: src.Addr, Dst: dst.Addr, SrcPort: src.Port, DstPort: dst.Port}
		for _, c := range []struct {
			proto Proto
			fin   bool
			flags uint8
		}{{TCP, false, 0}, {TCP, true, FIN}, {UDP, false, 0}, {UDP, true, 0}} {
			want.Proto = c.proto
			var p Packet
			buf := make([]byte, LongestNotice)
			n := PutNotice(buf, &want, c.fin)
			if fault := p.ParseIP(buf[:n]); fault != Good || p.Tuple != want || !p.ChecksumOK() || p.Payload != n {
				t.Errorf("%v, fin %v: fault %d, %v, %d bytes of %d", want, c.fin, fault, p.Tuple, p.Payload, n)
				continue
			}
			if !p.IsNotice() || p.TCPFlags != c.flags {
				t.Errorf("%v, fin %v: notice %v, flags %x", want, c.fin, p.IsNotice(), p.TCPFlags)
			}
		}
		for _, other := range []Proto{SCTP, ICMPv4, ICMPv6, IPIP} {
			if want.Proto = other; PutNotice(make([]byte, LongestNotice), &want, false) != 0 {
				t.Errorf("there is a notice of protocol %d", other)
			}
		}
	}
}
