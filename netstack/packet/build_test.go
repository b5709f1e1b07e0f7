package packet

import (
	"bytes"
	"hash/crc32"
	"net/netip"
	"testing"
)

// Addresses of the tests.
const (
	podA4, podB4, vip4 = "10.1.0.5", "10.2.0.9", "10.96.0.77"
	podA6, podB6, vip6 = "fd00:1::5", "fd00:2::9", "fd00:96::77"
)

var (
	macA = MAC{0x02, 1, 1, 1, 1, 1}
	macB = MAC{0x02, 2, 2, 2, 2, 2}
)

func addr(s string) Addr { return AddrFrom(netip.MustParseAddr(s)) }

// spec describes a packet. Its method ip builds the bytes, with checksums computed the slow way.
type spec struct {
	src, dst     string
	proto        Proto
	sport, dport uint16
	seq, ack     uint32
	flags        uint8
	tcpOpts      []byte
	icmp         uint8 // type
	code         uint8
	payload      []byte
	ipOpts       []byte // IPv4 options
	ext          []byte // IPv6 extension headers; ip sets the next header of the last one
	extFirst     uint8  // number of the first extension header
	extLast      int    // offset in ext of the last extension header
	id           uint16
	frag         uint16 // IPv4 flags and offset
	class        uint8
	partial      bool
	noCsum       bool // UDP without checksum
}

func (s spec) v6() bool { return netip.MustParseAddr(s.src).Is6() }

// l4 returns the L4 header and payload with a zero checksum.
func (s spec) l4() []byte {
	var b []byte
	switch s.proto {
	case TCP:
		b = make([]byte, 20+len(s.tcpOpts))
		be.PutUint32(b[4:], s.seq)
		be.PutUint32(b[8:], s.ack)
		b[12] = byte(len(b)/4) << 4
		b[13] = s.flags
		be.PutUint16(b[14:], 501)
		copy(b[20:], s.tcpOpts)
	case UDP:
		b = make([]byte, 8)
		be.PutUint16(b[4:], uint16(8+len(s.payload)))
	case SCTP:
		b = make([]byte, 12)
	case ICMPv4, ICMPv6:
		b = make([]byte, 8)
		b[0], b[1] = s.icmp, s.code
		be.PutUint16(b[4:], s.sport)
	}
	if s.proto == TCP || s.proto == UDP || s.proto == SCTP {
		be.PutUint16(b, s.sport)
		be.PutUint16(b[2:], s.dport)
	}
	return append(b, s.payload...)
}

func (s spec) ip() []byte {
	l4 := s.l4()
	var ip []byte
	if s.v6() {
		ext := bytes.Clone(s.ext)
		ip = make([]byte, 40)
		be.PutUint32(ip, 6<<28|uint32(s.class)<<20)
		be.PutUint16(ip[4:], uint16(len(ext)+len(l4)))
		ip[6], ip[7] = byte(s.proto), 61
		if len(ext) > 0 {
			ip[6] = s.extFirst
			ext[s.extLast] = byte(s.proto)
		}
		src, dst := netip.MustParseAddr(s.src).As16(), netip.MustParseAddr(s.dst).As16()
		copy(ip[8:], src[:])
		copy(ip[24:], dst[:])
		ip = append(ip, ext...)
	} else {
		ip = make([]byte, 20+len(s.ipOpts))
		ip[0], ip[1], ip[8], ip[9] = 0x40|byte(len(ip)/4), s.class, 61, byte(s.proto)
		be.PutUint16(ip[2:], uint16(len(ip)+len(l4)))
		be.PutUint16(ip[4:], s.id)
		be.PutUint16(ip[6:], s.frag)
		src, dst := netip.MustParseAddr(s.src).As4(), netip.MustParseAddr(s.dst).As4()
		copy(ip[12:], src[:])
		copy(ip[16:], dst[:])
		copy(ip[20:], s.ipOpts)
		slowIPChecksum(ip)
	}
	at := len(ip)
	ip = append(ip, l4...)
	switch {
	case s.noCsum:
	case s.partial:
		off, _ := csumOffset(s.proto)
		be.PutUint16(ip[at+off:], slowFold(slowPseudo(ip, at)))
	default:
		slowL4Checksum(ip, at, s.proto)
	}
	return ip
}

// frame puts a virtio-net and an Ethernet header before ip.
func frame(v VNetHdr, ip []byte) []byte {
	b := make([]byte, HeadLen, MaxFrame)
	v.Encode(b)
	copy(b[VNetHdrLen:], macB[:])
	copy(b[VNetHdrLen+6:], macA[:])
	be.PutUint16(b[VNetHdrLen+12:], EtherIPv4)
	if ip[0]>>4 == 6 {
		be.PutUint16(b[VNetHdrLen+12:], EtherIPv6)
	}
	return append(b, ip...)
}

// offload returns the virtio-net header that a kernel writes for s, of a superframe when gso is not 0.
func (s spec) offload(gso int) VNetHdr {
	l3, l4, off := 20+len(s.ipOpts), 8, uint16(6)
	if s.v6() {
		l3 = 40 + len(s.ext)
	}
	v := VNetHdr{Flags: NeedsCsum}
	if gso > 0 {
		v.GSOSize = uint16(gso)
		v.GSOType = GSOUDPL4
	}
	if s.proto == TCP {
		l4, off = 20+len(s.tcpOpts), 16
		if gso > 0 {
			v.GSOType = GSOTCPv4
			if s.v6() {
				v.GSOType = GSOTCPv6
			}
		}
	}
	v.HdrLen, v.CsumStart, v.CsumOffset = uint16(EthLen+l3+l4), uint16(EthLen+l3), off
	return v
}

// super returns the superframe of s as a kernel writes it.
func (s spec) super(gso int) []byte {
	s.partial = true
	return frame(s.offload(gso), s.ip())
}

func mustParse(t testing.TB, buf []byte) *Packet {
	t.Helper()
	p := new(Packet)
	if f := p.ParseFrame(buf); f != Good {
		t.Fatalf("ParseFrame: fault %d", f)
	}
	return p
}

func mustParseIP(t testing.TB, ip []byte) *Packet {
	t.Helper()
	p := new(Packet)
	if f := p.ParseIP(ip); f != Good {
		t.Fatalf("ParseIP: fault %d of % x", f, ip[:min(len(ip), 80)])
	}
	return p
}

// pattern returns n bytes in which no checksum error stays hidden.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + 1)
	}
	return b
}

// The slow twins of the checksums follow the RFCs word for word and share nothing with the code under test.

func slowSum(b []byte) (s uint64) {
	for i := range b {
		if i%2 == 0 {
			s += uint64(b[i]) << 8
		} else {
			s += uint64(b[i])
		}
	}
	return s
}

func slowFold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func slowPseudo(ip []byte, l4 int) uint64 {
	n := uint64(len(ip) - l4)
	if ip[0]>>4 == 4 {
		return slowSum(ip[12:20]) + uint64(ip[9]) + n
	}
	proto := ip[6]
	for at := 40; at < l4; {
		proto = ip[at]
		at += (int(ip[at+1]) + 1) * 8
	}
	return slowSum(ip[8:40]) + uint64(proto) + n>>16 + n&0xffff
}

func slowIPChecksum(hdr []byte) {
	hdr[10], hdr[11] = 0, 0
	be.PutUint16(hdr[10:], ^slowFold(slowSum(hdr)))
}

func slowL4Checksum(ip []byte, l4 int, proto Proto) {
	b := ip[l4:]
	switch proto {
	case TCP:
		b[16], b[17] = 0, 0
		be.PutUint16(b[16:], ^slowFold(slowSum(b)+slowPseudo(ip, l4)))
	case UDP:
		b[6], b[7] = 0, 0
		c := ^slowFold(slowSum(b) + slowPseudo(ip, l4))
		if c == 0 {
			c = 0xffff
		}
		be.PutUint16(b[6:], c)
	case ICMPv4:
		b[2], b[3] = 0, 0
		be.PutUint16(b[2:], ^slowFold(slowSum(b)))
	case ICMPv6:
		b[2], b[3] = 0, 0
		be.PutUint16(b[2:], ^slowFold(slowSum(b)+slowPseudo(ip, l4)))
	case SCTP:
		clear(b[8:12])
		le.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	}
}

// checkSums compares every checksum of a whole packet with the slow twin's.
func checkSums(t testing.TB, ip []byte) {
	t.Helper()
	p := mustParseIP(t, ip)
	want := bytes.Clone(p.IP)
	if p.EtherType == EtherIPv4 {
		slowIPChecksum(want[:p.L4])
	}
	slowL4Checksum(want, p.L4, p.Tuple.Proto)
	if !bytes.Equal(p.IP, want) {
		i := 0
		for p.IP[i] == want[i] {
			i++
		}
		t.Fatalf("checksum of proto %d differs at byte %d: got % x, want % x", p.Tuple.Proto, i, p.IP[i&^1:i&^1+2], want[i&^1:i&^1+2])
	}
	if !p.ChecksumOK() {
		t.Fatal("ChecksumOK is false for a right checksum")
	}
}

// families runs f for both address families.
func families(t *testing.T, f func(t *testing.T, a, b string)) {
	t.Run("IPv4", func(t *testing.T) { f(t, podA4, podB4) })
	t.Run("IPv6", func(t *testing.T) { f(t, podA6, podB6) })
}

// timestamps holds the usual option of TCP segments.
var timestamps = []byte{1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7}
