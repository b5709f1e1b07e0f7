package packet

import (
	"bytes"
	"testing"
)

const (
	node4, node6 = "10.1.0.1", "fd00:1::1"
	outside4     = "192.0.2.44"
)

func nodeOf(a string) Addr {
	if a == podA6 {
		return addr(node6)
	}
	return addr(node4)
}

func TestPutICMPError(t *testing.T) {
	names := map[ICMPError][2][2]uint8{ // RFC 792 and RFC 1812; RFC 4443
		PortUnreachable: {{3, 3}, {1, 4}},
		HostUnreachable: {{3, 1}, {1, 3}},
		AdminProhibited: {{3, 13}, {1, 1}},
		TooBig:          {{3, 4}, {2, 0}},
		TimeExceeded:    {{11, 0}, {3, 0}},
		NetUnreachable:  {{3, 0}, {1, 0}},
	}
	families(t, func(t *testing.T, a, b string) {
		fam, limit := 0, 576
		if a == podA6 {
			fam, limit = 1, 1280
		}
		for e, want := range names {
			for _, n := range []int{0, 1, 600, 5000} {
				s := spec{src: a, dst: b, proto: UDP, sport: 9, dport: 10, payload: pattern(n)}
				p := mustParse(t, frame(VNetHdr{}, s.ip()))
				dst := make([]byte, 1280)
				m := PutICMPError(dst, p, e, nodeOf(a), 1380)
				got := dst[:m]
				checkSums(t, got)
				q := mustParseIP(t, got)
				if q.Tuple.Src != nodeOf(a) || q.Tuple.Dst != addr(a) || q.ICMPType != want[fam][0] || q.ICMPCode != want[fam][1] {
					t.Errorf("error %d: %+v type %d code %d", e, q.Tuple, q.ICMPType, q.ICMPCode)
				}
				quoted := got[q.Payload:]
				if len(got) != min(limit, q.Payload+len(p.IP)) || !bytes.HasPrefix(p.IP, quoted) {
					t.Errorf("error %d quotes %d of %d bytes", e, len(quoted), len(p.IP))
				}
				mtu := be.Uint32(got[q.L4+4:])
				if e == TooBig && mtu != 1380 || e != TooBig && mtu != 0 {
					t.Errorf("error %d: MTU %d", e, mtu)
				}
				var in Packet
				if !q.Embedded(&in) || in.Tuple != p.Tuple {
					t.Errorf("error %d: quoted tuple %+v", e, in.Tuple)
				}
			}
		}
	})
}

// An error about a superframe or a partial checksum quotes to the sender what would have been on a wire.
func TestPutICMPErrorQuotesSegment(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		for _, proto := range []Proto{TCP, UDP} {
			for _, gso := range []int{0, 100, 1380} {
				s := spec{src: a, dst: b, proto: proto, sport: 9, dport: 10, seq: 5, flags: ACK | PSH | CWR, payload: pattern(3000), id: 4}
				p := mustParse(t, s.super(gso))
				before := bytes.Clone(p.Buf)
				first := segments(t, p, nil)[0]
				dst := make([]byte, 1280)
				q := mustParseIP(t, dst[:PutICMPError(dst, p, TooBig, nodeOf(a), 1380)])
				if !bytes.HasPrefix(first, q.IP[q.Payload:]) || len(q.IP) < 128 {
					t.Errorf("proto %d, gso %d: quote\n% x\nis not of\n% x", proto, gso, q.IP[q.Payload:][:60], first[:60])
				}
				if !bytes.Equal(before, p.Buf) {
					t.Error("the packet was changed")
				}
			}
		}
	})
}

func TestNoAnswer(t *testing.T) {
	tcp := func(src, dst string) spec {
		return spec{src: src, dst: dst, proto: TCP, sport: 1, dport: 2, flags: ACK}
	}
	icmp := func(typ uint8) spec {
		return spec{src: podA4, dst: podB4, proto: ICMPv4, icmp: typ, payload: pattern(28)}
	}
	icmp6 := func(typ uint8) spec {
		return spec{src: podA6, dst: podB6, proto: ICMPv6, icmp: typ, payload: pattern(48)}
	}
	later := tcp(podA4, podB4)
	later.frag, later.payload = 100, pattern(8)
	tests := map[string]spec{
		"to multicast":       tcp(podA4, "224.0.0.1"),
		"to broadcast":       tcp(podA4, "255.255.255.255"),
		"to nothing":         tcp(podA4, "0.0.0.0"),
		"from multicast":     tcp("239.1.1.1", podB4),
		"from nothing":       tcp("0.0.0.0", podB4),
		"from loopback":      tcp("127.0.0.1", podB4),
		"from class E":       tcp("250.0.0.1", podB4),
		"later fragment":     later,
		"to multicast/6":     tcp(podA6, "ff02::1"),
		"from multicast/6":   tcp("ff02::1", podB6),
		"from unspecified/6": tcp("::", podB6),
		"from loopback/6":    tcp("::1", podB6),
	}
	for _, typ := range []uint8{3, 4, 5, 11, 12} {
		tests["ICMP "+string('a'+rune(typ))] = icmp(typ)
	}
	for _, typ := range []uint8{1, 2, 3, 4, 100, 127, 137} {
		tests["ICMPv6 "+string('a'+rune(typ))] = icmp6(typ)
	}
	dst := make([]byte, 1280)
	for name, s := range tests {
		p := mustParse(t, frame(VNetHdr{}, s.ip()))
		from := addr(node4)
		if s.v6() {
			from = addr(node6)
		}
		if n := PutICMPError(dst, p, HostUnreachable, from, 0); n != 0 {
			t.Errorf("%s: ICMP error of %d bytes", name, n)
		}
		if n := PutRST(dst, p); n != 0 {
			t.Errorf("%s: RST of %d bytes", name, n)
		}
	}
	p := mustParse(t, frame(VNetHdr{}, tcp(podA4, podB4).ip()))
	if PutICMPError(dst, p, HostUnreachable, addr(node6), 0) != 0 {
		t.Error("answer from an address of the other family")
	}
	p.Buf[VNetHdrLen] = 0xff
	if PutICMPError(dst, p, HostUnreachable, addr(node4), 0) != 0 || PutRST(dst, p) != 0 {
		t.Error("answer to a link broadcast")
	}
	for _, s := range []spec{icmp(8), icmp6(128)} { // an echo is no error, so it may be answered with one
		p := mustParse(t, frame(VNetHdr{}, s.ip()))
		from := addr(node4)
		if s.v6() {
			from = addr(node6)
		}
		if PutICMPError(dst, p, HostUnreachable, from, 0) == 0 {
			t.Error("no answer to an echo request")
		}
	}
}

func TestPutRST(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		base := spec{src: a, dst: b, proto: TCP, sport: 40000, dport: 80, seq: 0xfffffffe, ack: 777, tcpOpts: timestamps}
		tests := []struct {
			name     string
			flags    uint8
			payload  int
			seq, ack uint32
			want     uint8 // flags, 0 for none
		}{
			{"SYN", SYN, 0, 0, 0xffffffff, RST | ACK},
			{"SYN with data", SYN, 10, 0, 9, RST | ACK},
			{"FIN", FIN, 0, 0, 0xffffffff, RST | ACK},
			{"nothing", 0, 3, 0, 1, RST | ACK},
			{"ACK", ACK, 100, 777, 0, RST},
			{"SYN ACK", SYN | ACK, 0, 777, 0, RST},
			{"RST", RST, 0, 0, 0, 0},
			{"RST ACK", RST | ACK, 0, 0, 0, 0},
		}
		for _, tt := range tests {
			s := base
			s.flags, s.payload = tt.flags, pattern(tt.payload)
			dst := make([]byte, 100)
			n := PutRST(dst, mustParse(t, s.super(0)))
			if tt.want == 0 {
				if n != 0 {
					t.Errorf("%s: answered", tt.name)
				}
				continue
			}
			checkSums(t, dst[:n])
			p := mustParseIP(t, dst[:n])
			want := Tuple{Src: addr(b), Dst: addr(a), SrcPort: 80, DstPort: 40000, Proto: TCP}
			seq, ack := be.Uint32(p.IP[p.L4+4:]), be.Uint32(p.IP[p.L4+8:])
			if p.Tuple != want || p.TCPFlags != tt.want || seq != tt.seq || ack != tt.ack || p.Payload != n {
				t.Errorf("%s: %+v flags %#x seq %d ack %d", tt.name, p.Tuple, p.TCPFlags, seq, ack)
			}
		}
		if PutRST(make([]byte, 100), mustParseIP(t, spec{src: a, dst: b, proto: UDP}.ip())) != 0 {
			t.Error("RST in answer to UDP")
		}
	})
}

// A RST acknowledges all that a coalesced superframe carries.
func TestPutRSTCountsTail(t *testing.T) {
	s := spec{src: podA4, dst: podB4, proto: TCP, flags: ACK, frag: 0x4000, payload: pattern(100)}
	next := s
	next.seq += 100
	p := coalesce(t, new(Coalescer), s.ip(), next.ip())[0]
	p.TCPFlags &^= ACK
	dst := make([]byte, 60)
	if n := PutRST(dst, p); n != 40 || be.Uint32(dst[28:]) != 200 {
		t.Errorf("%d bytes, acknowledges %d, want 200", n, be.Uint32(dst[28:]))
	}
}

// icmpError builds the error that a router or host on the way sends about the packet quoted.
func icmpError(src, dst string, typ uint8, quoted []byte) []byte {
	s := spec{src: src, dst: dst, proto: ICMPv4, icmp: typ, code: 1, payload: quoted}
	if s.v6() {
		s.proto = ICMPv6
	}
	return s.ip()
}

func TestRewriteEmbedded(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		typ := uint8(3)
		if a == podA6 {
			typ = 1
		}
		for name, s := range rewriteSpecs(a, b) {
			if s.proto == 47 || name == "ICMP, no echo" {
				continue
			}
			whole := s.ip()
			full := mustParseIP(t, whole)
			for cut := full.L4 + 8; cut <= len(whole); cut++ {
				ip := icmpError(b, a, typ, whole[:cut])
				p := mustParseIP(t, ip)
				var in Packet
				if !p.Embedded(&in) || in.Tuple != full.Tuple || in.L4 != full.L4 || in.Payload > len(in.IP) {
					t.Fatalf("%s cut at %d: tuple %+v", name, cut, in.Tuple)
				}
				to := in.Tuple
				to.Src[14], to.Dst[13] = 200, 201
				to.SrcPort, to.DstPort = 1234, 5678
				if s.proto == ICMPv4 || s.proto == ICMPv6 {
					to.DstPort = to.SrcPort
				}
				outerSrc, outerDst := to.Dst, to.Src
				p.RewriteEmbedded(outerSrc, outerDst, &to)
				checkSums(t, p.IP) // the checksum of the error covers the whole quote
				if p.Tuple.Src != outerSrc || p.Tuple.Dst != outerDst {
					t.Fatalf("%s: outer tuple %+v", name, p.Tuple)
				}
				var again Packet
				if !p.Embedded(&again) || again.Tuple != to {
					t.Fatalf("%s cut at %d: quoted tuple now %+v, want %+v", name, cut, again.Tuple, to)
				}
				want := bytes.Clone(whole)
				apply(want, full, &to)
				switch {
				case s.proto == SCTP && cut < len(whole): // the CRC cannot be updated without the whole packet
					copy(want[full.L4+8:], whole[full.L4+8:full.L4+12])
				case s.proto == TCP && cut == full.L4+17: // a checksum that is cut in half stays
					want[full.L4+16] = whole[full.L4+16]
				}
				if !bytes.Equal(again.IP, want[:cut]) {
					t.Fatalf("%s cut at %d:\ngot  % x\nwant % x", name, cut, again.IP, want[:cut])
				}
			}
		}
	})
}

func TestRewriteEmbeddedKeepsDamage(t *testing.T) {
	whole := spec{src: podA4, dst: podB4, proto: TCP, sport: 1, dport: 2, payload: pattern(50)}.ip()
	ip := icmpError(podB4, podA4, 3, whole)
	ip[len(ip)-1] ^= 4
	p := mustParseIP(t, ip)
	p.RewriteEmbedded(addr(podA4), addr(vip4), &Tuple{Src: addr(vip4), Dst: addr(podA4), SrcPort: 3, DstPort: 4})
	if p.ChecksumOK() {
		t.Error("a damaged error became a good one")
	}
}

func TestEmbeddedRefuses(t *testing.T) {
	udp := spec{src: podA4, dst: podB4, proto: UDP, sport: 1, dport: 2, payload: pattern(50)}
	later := udp
	later.frag = 5
	udp6 := spec{src: podA6, dst: podB6, proto: UDP}
	tests := map[string][]byte{
		"echo":              icmpError(podB4, podA4, 8, udp.ip()),
		"nothing quoted":    icmpError(podB4, podA4, 3, nil),
		"7 bytes of UDP":    icmpError(podB4, podA4, 3, udp.ip()[:27]),
		"header cut":        icmpError(podB4, podA4, 3, udp.ip()[:19]),
		"later fragment":    icmpError(podB4, podA4, 3, later.ip()),
		"other family":      icmpError(podB4, podA4, 3, udp6.ip()),
		"error about error": icmpError(podB4, podA4, 3, icmpError(podA4, podB4, 3, udp.ip())),
		"IPv6 redirect":     icmpError(podB6, podA6, 137, udp6.ip()),
		"UDP":               udp.ip(),
	}
	for name, ip := range tests {
		p := mustParseIP(t, ip)
		before := bytes.Clone(ip)
		if p.Embedded(new(Packet)) {
			t.Errorf("%s: accepted", name)
		}
		p.RewriteEmbedded(addr(podA4), addr(podA4), &Tuple{})
		if !bytes.Equal(before, ip) {
			t.Errorf("%s: changed", name)
		}
	}
}
