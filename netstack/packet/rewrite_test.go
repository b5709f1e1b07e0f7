package packet

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// rewriteSpecs are packets of every kind that Rewrite knows.
func rewriteSpecs(a, b string) map[string]spec {
	echo, icmp, other := uint8(8), ICMPv4, uint8(13)
	if a == podA6 {
		echo, icmp, other = 128, ICMPv6, 133
	}
	return map[string]spec{
		"TCP":           {src: a, dst: b, proto: TCP, sport: 40000, dport: 80, seq: 5, ack: 6, flags: ACK, tcpOpts: timestamps, payload: pattern(101)},
		"UDP":           {src: a, dst: b, proto: UDP, sport: 40000, dport: 53, payload: pattern(33)},
		"SCTP":          {src: a, dst: b, proto: SCTP, sport: 40000, dport: 53, payload: pattern(32)},
		"echo":          {src: a, dst: b, proto: icmp, icmp: echo, sport: 40000, dport: 40000, payload: pattern(56)},
		"ICMP, no echo": {src: a, dst: b, proto: icmp, icmp: other, payload: pattern(12)},
		"GRE":           {src: a, dst: b, proto: 47, payload: pattern(12)},
	}
}

// randomTuple returns a tuple of the family of from. Each byte of the addresses, and each port, stays the same in one
// case of four.
func randomTuple(r *rand.Rand, from Tuple) Tuple {
	to := from
	at := 0
	if from.Src.Is4() {
		at = 12
	}
	for i := at; i < 16; i++ {
		if r.IntN(4) > 0 {
			to.Src[i], to.Dst[i] = byte(r.Uint32()), byte(r.Uint32())
		}
	}
	if at == 0 {
		to.Src[0], to.Dst[0] = 0xfd, 0xfd
	}
	if from.SrcPort != 0 || from.DstPort != 0 {
		if r.IntN(4) > 0 {
			to.SrcPort = uint16(r.Uint32())
		}
		if r.IntN(4) > 0 {
			to.DstPort = uint16(r.Uint32())
		}
		if from.Proto == ICMPv4 || from.Proto == ICMPv6 {
			to.DstPort = to.SrcPort
		}
	}
	return to
}

// apply is the slow twin of Rewrite: it writes the fields, then sums up everything anew.
func apply(ip []byte, p *Packet, to *Tuple) {
	if p.EtherType == EtherIPv4 {
		copy(ip[12:], to.Src[12:])
		copy(ip[16:], to.Dst[12:])
		slowIPChecksum(ip[:p.L4])
	} else {
		copy(ip[8:], to.Src[:])
		copy(ip[24:], to.Dst[:])
	}
	b := ip[p.L4:]
	switch p.Tuple.Proto {
	case TCP, UDP, SCTP:
		be.PutUint16(b, to.SrcPort)
		be.PutUint16(b[2:], to.DstPort)
	case ICMPv4, ICMPv6:
		if b[0] == 8 || b[0] == 128 {
			be.PutUint16(b[4:], to.SrcPort)
		}
	}
	if p.isPartial() {
		off, _ := csumOffset(p.Tuple.Proto)
		be.PutUint16(b[off:], slowFold(slowPseudo(ip, p.L4)))
		return
	}
	slowL4Checksum(ip, p.L4, p.Tuple.Proto)
}

func TestRewrite(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	families(t, func(t *testing.T, a, b string) {
		for name, s := range rewriteSpecs(a, b) {
			for _, partial := range []bool{false, true} {
				if partial && s.proto != TCP && s.proto != UDP {
					continue
				}
				for range 150 {
					buf := frame(VNetHdr{}, s.ip())
					if partial {
						buf = s.super(0)
					}
					p := mustParse(t, buf)
					p.Tuple.Space = 7
					to := randomTuple(r, p.Tuple)
					to.Space, to.Proto = 9, 99 // Rewrite ignores them
					want := bytes.Clone(p.IP)
					apply(want, p, &to)
					p.Rewrite(&to)
					if !bytes.Equal(p.IP, want) {
						t.Fatalf("%s, partial %v, to %+v:\ngot  % x\nwant % x", name, partial, to, p.IP, want)
					}
					to.Space, to.Proto = 7, s.proto
					if p.Tuple != to {
						t.Fatalf("Tuple %+v, want %+v", p.Tuple, to)
					}
					// The rewritten packet parses as the tuple to which it was rewritten.
					if q := mustParseIP(t, p.IP); q.Tuple.Src != to.Src || q.Tuple.SrcPort != to.SrcPort || q.Tuple.DstPort != to.DstPort {
						t.Fatalf("parsed again: %+v, want %+v", q.Tuple, to)
					}
				}
			}
		}
	})
}

// A computed UDP checksum of 0 is never sent as 0, whatever values it passes through.
func TestRewriteUDPZero(t *testing.T) {
	s := spec{src: podA4, dst: podB4, proto: UDP, sport: 1, dport: 2, payload: pattern(8)}
	seen := false
	ip := s.ip()
	for port := range 1 << 16 {
		p := mustParseIP(t, bytes.Clone(ip))
		to := p.Tuple
		to.SrcPort = uint16(port)
		p.Rewrite(&to)
		switch be.Uint16(p.IP[26:]) {
		case 0:
			t.Fatalf("port %d: checksum 0", port)
		case 0xffff:
			seen = true
			checkSums(t, p.IP)
			p.Rewrite(&Tuple{Src: to.Src, Dst: to.Dst, SrcPort: 1, DstPort: 2})
			checkSums(t, p.IP)
		}
	}
	if !seen {
		t.Error("no port made the checksum 0xffff: the test tests nothing")
	}
}

// A datagram without a checksum stays without one, also in fragments, and where an ICMP error quotes it.
func TestRewriteUDPWithoutChecksum(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		p := mustParseIP(t, spec{src: a, dst: b, proto: UDP, sport: 1, dport: 2, payload: pattern(8), noCsum: true}.ip())
		vip, icmp := vip4, spec{src: b, dst: a, proto: ICMPv4, icmp: 3, code: 3, payload: bytes.Clone(p.IP)}
		if !p.Tuple.Src.Is4() {
			vip, icmp.proto, icmp.icmp, icmp.code = vip6, ICMPv6, 1, 4
		}
		to := Tuple{Src: addr(vip), Dst: addr(a), SrcPort: 5, DstPort: 6}
		p.Rewrite(&to)
		if got := be.Uint16(p.IP[p.L4+6:]); got != 0 {
			t.Errorf("checksum %#x, want none", got)
		}
		if be.Uint16(p.IP[p.L4:]) != 5 || be.Uint16(p.IP[p.L4+2:]) != 6 {
			t.Error("ports not rewritten")
		}
		mustParseIP(t, p.IP) // header checksum

		e := mustParseIP(t, icmp.ip())
		quoted := Tuple{Src: addr(a), Dst: addr(vip), SrcPort: 6, DstPort: 5}
		e.RewriteEmbedded(addr(vip), addr(a), &quoted)
		checkSums(t, e.IP)
		var in Packet
		if !e.Embedded(&in) || in.Tuple.DstPort != 5 || be.Uint16(in.IP[in.L4+6:]) != 0 {
			t.Errorf("the quoted datagram is % x", in.IP)
		}
	})
}

// A packet that arrived damaged must leave damaged.
func TestRewriteKeepsDamage(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		for name, s := range rewriteSpecs(a, b) {
			if s.proto == 47 {
				continue
			}
			ip := s.ip()
			ip[len(ip)-2] ^= 0x10
			p := mustParseIP(t, ip)
			to := p.Tuple
			to.Src[15]++
			to.SrcPort += 3
			to.DstPort = to.SrcPort
			p.Rewrite(&to)
			if p.ChecksumOK() {
				t.Errorf("%s: checksum became right", name)
			}
		}
	})
}

func TestRewriteFragments(t *testing.T) {
	s := spec{src: podA4, dst: podB4, proto: UDP, sport: 1, dport: 2, payload: pattern(3000), id: 9}
	whole := mustParseIP(t, s.ip())
	to := Tuple{Src: addr(vip4), Dst: addr("10.3.3.3"), SrcPort: 77, DstPort: 78}
	var parts [][]byte
	whole.Fragment(1000, make([]byte, 1000), func(ip []byte) { parts = append(parts, bytes.Clone(ip)) })
	var data []byte
	for i, ip := range parts {
		p := mustParseIP(t, ip)
		if i > 0 && (p.Frag != LaterFrag || p.Tuple.SrcPort != 0) {
			t.Fatalf("fragment %d: kind %d, %+v", i, p.Frag, p.Tuple)
		}
		p.Rewrite(&to)
		mustParseIP(t, ip) // header checksum
		data = append(data, ip[20:]...)
	}
	whole.Rewrite(&to)
	checkSums(t, whole.IP)
	if !bytes.Equal(data, whole.IP[20:]) {
		t.Error("rewritten fragments do not make up the rewritten packet")
	}
}

func BenchmarkRewrite(b *testing.B) {
	for name, s := range map[string]spec{
		"TCP/4": {src: podA4, dst: podB4, proto: TCP, sport: 40000, dport: 80, flags: ACK, payload: pattern(1400)},
		"TCP/6": {src: podA6, dst: podB6, proto: TCP, sport: 40000, dport: 80, flags: ACK, payload: pattern(1400)},
	} {
		b.Run(name, func(b *testing.B) {
			p := mustParse(b, s.super(0))
			x, y := p.Tuple, p.Tuple
			y.Dst[15], y.DstPort = 77, 8080
			b.ReportAllocs()
			for b.Loop() {
				p.Rewrite(&y)
				x, y = y, x
			}
		})
	}
}

func BenchmarkParseFrame(b *testing.B) {
	tcp4 := spec{src: podA4, dst: podB4, proto: TCP, sport: 40000, dport: 80, flags: ACK, tcpOpts: timestamps, payload: pattern(1300)}
	tcp6, udp4, super := tcp4, tcp4, tcp4
	tcp6.src, tcp6.dst = podA6, podB6
	udp4.proto, udp4.tcpOpts = UDP, nil
	super.payload = pattern(60000)
	kinds := [][]byte{tcp4.super(0), tcp6.super(0), udp4.super(0), super.super(1400)}
	run := func(name string, frames [][]byte) {
		b.Run(name, func(b *testing.B) {
			var p Packet
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if p.ParseFrame(frames[i&(len(frames)-1)]) != Good {
					b.Fatal("not good")
				}
				i++
			}
		})
	}
	for i, name := range []string{"TCP4", "TCP6", "UDP4", "superframe"} {
		run(name, kinds[i:i+1])
	}
	mixed := make([][]byte, 1<<12)
	for i := range mixed { // in an order that a branch predictor does not learn
		mixed[i] = kinds[uint32(i)*2654435761>>13&3]
	}
	run("mixed", mixed)
}
