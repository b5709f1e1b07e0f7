package packet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func FuzzChecksum(f *testing.F) {
	f.Add([]byte{}, uint32(0))
	f.Add([]byte{1}, uint32(0xffffffff))
	f.Add(pattern(1000), uint32(17))
	f.Fuzz(func(t *testing.T, b []byte, initial uint32) {
		if got, want := Checksum(b, initial), slowFold(slowSum(b)+uint64(initial)); got != want {
			t.Fatalf("Checksum(%d bytes, %#x) = %#x, want %#x", len(b), initial, got, want)
		}
	})
}

func TestChecksumAllLengths(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 700)
	for n := range b {
		for _, fill := range []int{-1, 0, 0xff} {
			for i := range b {
				b[i] = byte(fill)
				if fill < 0 {
					b[i] = byte(r.Uint32())
				}
			}
			initial := r.Uint32()
			if got, want := Checksum(b[:n], initial), slowFold(slowSum(b[:n])+uint64(initial)); got != want {
				t.Fatalf("%d bytes of %d: %#x, want %#x", n, fill, got, want)
			}
		}
	}
}

func TestChecksumOK(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		icmp, echo := ICMPv4, uint8(8)
		if a == podA6 {
			icmp, echo = ICMPv6, 128
		}
		for _, proto := range []Proto{TCP, UDP, SCTP, icmp} {
			for _, n := range []int{0, 1, 2, 1399} {
				s := spec{src: a, dst: b, proto: proto, sport: 40000, dport: 80, icmp: echo, payload: pattern(n)}
				ip := s.ip()
				p := mustParseIP(t, ip)
				if !p.ChecksumOK() {
					t.Errorf("proto %d, %d bytes: right checksum refused", proto, n)
				}
				ip[len(ip)-1] ^= 0x40
				if p.ChecksumOK() {
					t.Errorf("proto %d, %d bytes: wrong checksum accepted", proto, n)
				}
			}
		}
		p := mustParseIP(t, spec{src: a, dst: b, proto: UDP, noCsum: true}.ip())
		if got, want := p.ChecksumOK(), a == podA4; got != want {
			t.Errorf("UDP without checksum: %v, want %v", got, want)
		}
	})
}

// A datagram may end before the IP packet does; the checksum does not cover the bytes after it.
func TestChecksumOKSurplus(t *testing.T) {
	ip := spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(20)}.ip()
	ip = append(ip, 1, 2, 3)
	be.PutUint16(ip[2:], uint16(len(ip)))
	slowIPChecksum(ip[:20])
	if !mustParseIP(t, ip).ChecksumOK() {
		t.Error("the checksum covers bytes after the datagram")
	}
}

// The payload may lie in pieces, also of odd lengths.
func TestChecksumOKTail(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		for _, proto := range []Proto{TCP, UDP} {
			for _, cut := range [][2]int{{100, 200}, {101, 200}, {101, 201}, {1, 2}, {0, 299}} {
				ip := spec{src: a, dst: b, proto: proto, payload: pattern(300)}.ip()
				p := mustParseIP(t, ip)
				data := ip[p.Payload:]
				p.IP = ip[:p.Payload+cut[0]]
				p.Tail = [][]byte{data[cut[0]:cut[1]], data[cut[1]:]}
				if !p.ChecksumOK() {
					t.Errorf("proto %d cut at %v: right checksum refused", proto, cut)
				}
				p.Tail[1][0] ^= 1
				if p.ChecksumOK() {
					t.Errorf("proto %d cut at %v: wrong checksum accepted", proto, cut)
				}
			}
		}
	})
}

// ICMP of the other family counts as an unknown protocol: nothing is verified, and only addresses are translated.
func TestForeignICMP(t *testing.T) {
	for _, s := range []spec{
		{src: podA4, dst: podB4, proto: ICMPv6, icmp: 128, sport: 5, payload: pattern(8), noCsum: true},
		{src: podA6, dst: podB6, proto: ICMPv4, icmp: 8, sport: 5, payload: pattern(8), noCsum: true},
	} {
		p := mustParseIP(t, s.ip())
		l4 := string(p.IP[p.L4:])
		to := p.Tuple
		to.Src[15], to.SrcPort = 99, 99
		p.Rewrite(&to)
		if p.ICMPType != 0 || !p.ChecksumOK() || string(p.IP[p.L4:]) != l4 || mustParseIP(t, p.IP).Tuple.Src != to.Src {
			t.Errorf("proto %d: treated as ICMP", s.proto)
		}
	}
}

func TestCompleteChecksum(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		for _, proto := range []Proto{TCP, UDP} {
			for _, n := range []int{0, 1, 333} {
				p := mustParse(t, spec{src: a, dst: b, proto: proto, sport: 1, dport: 2, payload: pattern(n)}.super(0))
				p.CompleteChecksum()
				if p.VNet != (VNetHdr{}) {
					t.Errorf("VNet = %+v, want zero", p.VNet)
				}
				checkSums(t, p.IP)
			}
		}
	})
}

// A computed UDP checksum of zero is sent as 0xffff.
func TestCompleteChecksumZero(t *testing.T) {
	s := spec{src: podA4, dst: podB4, proto: UDP, sport: 1, dport: 2, payload: []byte{0, 0}}
	sum := be.Uint16(s.ip()[26:])
	be.PutUint16(s.payload, sum) // makes the sum 0xffff and its complement 0
	p := mustParse(t, s.super(0))
	p.CompleteChecksum()
	if got := be.Uint16(p.IP[26:]); got != 0xffff {
		t.Errorf("checksum %#x, want 0xffff", got)
	}
	checkSums(t, p.IP)
}

func TestAddr(t *testing.T) {
	for _, s := range []string{podA4, podA6, "0.0.0.0", "::", "255.255.255.255"} {
		a := addr(s)
		if a.String() != s || a.Is4() != netip.MustParseAddr(s).Is4() {
			t.Errorf("%s became %s, IPv4 %v", s, a, a.Is4())
		}
		ap := netip.AddrPortFrom(netip.MustParseAddr(s), 443)
		if got := EndpointFrom(ap).AddrPort(); got != ap {
			t.Errorf("%s became %s", ap, got)
		}
	}
}

func TestHash(t *testing.T) {
	base := Tuple{Src: addr(podA4), Dst: addr(podB4), SrcPort: 40000, DstPort: 80, Space: 0, Proto: TCP}
	variants := []Tuple{base, base.Reverse()}
	for i := range 16 {
		v := base
		v.Src[i] ^= 1
		w := base
		w.Dst[i] ^= 1
		variants = append(variants, v, w)
	}
	v := base
	v.SrcPort++
	w := base
	w.DstPort++
	x := base
	x.Space++
	y := base
	y.Proto = UDP
	variants = append(variants, v, w, x, y)
	seen := map[uint64]Tuple{}
	for _, v := range variants {
		for seed := range uint64(4) {
			h := v.Hash(seed)
			if h != v.Hash(seed) {
				t.Fatal("two calls of Hash with equal arguments differ")
			}
			if o, dup := seen[h]; dup {
				t.Errorf("%+v and %+v have one hash", o, v)
			}
			seen[h] = v
		}
	}
}

// Every bit of the hash is equally distributed, also for tuples and seeds that differ little.
func TestHashSpread(t *testing.T) {
	const n = 1 << 16
	tests := map[string]func(i int) uint64{
		"ports": func(i int) uint64 {
			u := Tuple{Src: addr(podA4), Dst: addr(podB4), SrcPort: uint16(i), DstPort: 80, Proto: TCP}
			return u.Hash(7)
		},
		"seeds": func(i int) uint64 {
			u := Tuple{Src: addr(podA6), Dst: addr(podB6), SrcPort: 9, DstPort: 80, Proto: TCP}
			return u.Hash(uint64(i))
		},
		"hosts": func(i int) uint64 {
			u := Tuple{Src: Addr{10: 255, 11: 255, 12: 10, 14: byte(i >> 8), 15: byte(i)}, Dst: addr(vip4), SrcPort: 9, DstPort: 80, Proto: UDP}
			return u.Hash(0)
		},
	}
	for name, hash := range tests {
		for _, shift := range []int{0, 8, 24, 56} {
			var counts [256]int
			for i := range n {
				counts[hash(i)>>shift&0xff]++
			}
			for b, c := range counts { // 256 expected, deviation 16
				if c < 256-96 || c > 256+96 {
					t.Errorf("%s: bucket %d of bits %d holds %d of %d", name, b, shift, c, n)
				}
			}
		}
	}
}

func BenchmarkChecksum(b *testing.B) {
	for _, n := range []int{20, 1400, 65535} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := pattern(n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				Checksum(buf, 0)
			}
		})
	}
}

func BenchmarkHash(b *testing.B) {
	u := Tuple{Src: addr(podA6), Dst: addr(podB6), SrcPort: 9, DstPort: 80, Proto: TCP}
	b.ReportAllocs()
	for b.Loop() {
		u.SrcPort = uint16(u.Hash(1))
	}
}
