package packet

import (
	"bytes"
	"fmt"
	"testing"
)

// segments returns what a Segmenter makes of p.
func segments(t testing.TB, p *Packet, via *Encap) [][]byte {
	t.Helper()
	return cut(t, new(Segmenter), p, via)
}

// cut calls Next of a Segmenter until its end.
func cut(t testing.TB, s *Segmenter, p *Packet, via *Encap) (out [][]byte) {
	t.Helper()
	s.Reset(p, via)
	dst := make([]byte, s.Size())
	for {
		clear(dst)
		n := s.Next(dst)
		if n == 0 {
			if s.Next(dst) != 0 {
				t.Fatal("a segment after the end")
			}
			return out
		}
		if n > s.Size() {
			t.Fatalf("segment of %d bytes, Size %d", n, s.Size())
		}
		out = append(out, bytes.Clone(dst[:n]))
	}
}

func TestSegmentTCP(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		s := spec{
			src: a, dst: b, proto: TCP, sport: 40000, dport: 80, seq: 0xfffffff0, ack: 99, id: 0xffff, frag: 0x4000, class: 0x12,
			flags: ACK | PSH | FIN | CWR | ECE, tcpOpts: timestamps, payload: pattern(3333),
		}
		p := mustParse(t, s.super(1000))
		got := segments(t, p, nil)
		if len(got) != 4 {
			t.Fatalf("%d segments, want 4", len(got))
		}
		for i, ip := range got {
			want := s
			want.seq += uint32(1000 * i)
			want.id += uint16(i)
			want.payload = s.payload[1000*i : min(1000*i+1000, len(s.payload))]
			if i != 0 {
				want.flags &^= CWR
			}
			if i != 3 {
				want.flags &^= FIN | PSH
			}
			if w := want.ip(); !bytes.Equal(ip, w) {
				t.Errorf("segment %d:\ngot  % x\nwant % x", i, ip[:60], w[:60])
			}
		}
	})
}

func TestSegmentUDP(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		s := spec{src: a, dst: b, proto: UDP, sport: 40000, dport: 53, id: 5, payload: pattern(2501)}
		got := segments(t, mustParse(t, s.super(1001)), nil)
		if len(got) != 3 {
			t.Fatalf("%d segments, want 3", len(got))
		}
		for i, ip := range got {
			want := s
			want.id += uint16(i)
			want.payload = s.payload[1001*i : min(1001*i+1001, len(s.payload))]
			if w := want.ip(); !bytes.Equal(ip, w) {
				t.Errorf("segment %d:\ngot  % x\nwant % x", i, ip[:48], w[:48])
			}
		}
	})
}

func TestSegmentExtensionHeaders(t *testing.T) {
	s := spec{src: podA6, dst: podB6, proto: TCP, flags: ACK, payload: pattern(2000), extFirst: 60, ext: []byte{0, 0, 1, 4, 0, 0, 0, 0}}
	got := segments(t, mustParse(t, s.super(1200)), nil)
	if len(got) != 2 {
		t.Fatalf("%d segments, want 2", len(got))
	}
	for _, ip := range got {
		checkSums(t, ip)
	}
}

// A packet that is no superframe passes as it is; a partial checksum is completed.
func TestSegmentOne(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		for name, s := range rewriteSpecs(a, b) {
			got := segments(t, mustParse(t, frame(VNetHdr{}, s.ip())), nil)
			if len(got) != 1 || !bytes.Equal(got[0], s.ip()) {
				t.Errorf("%s: changed", name)
			}
		}
		for _, n := range []int{0, 1, 1400} {
			s := spec{src: a, dst: b, proto: TCP, flags: ACK | PSH, payload: pattern(n)}
			got := segments(t, mustParse(t, s.super(0)), nil)
			if len(got) != 1 || !bytes.Equal(got[0], s.ip()) {
				t.Errorf("partial TCP, %d bytes: wrong", n)
			}
		}
	})
	s := spec{src: podA4, dst: podB4, proto: UDP, frag: 4, payload: pattern(100)}
	if got := segments(t, mustParseIP(t, s.ip()), nil); len(got) != 1 || !bytes.Equal(got[0], s.ip()) {
		t.Error("fragment changed")
	}
}

func TestEncap(t *testing.T) {
	outers := map[string]Encap{
		"IPv4": {addr("10.1.0.1"), addr("10.2.0.1")},
		"IPv6": {addr("fd00:1::1"), addr("fd00:2::1")},
	}
	for name, via := range outers {
		families(t, func(t *testing.T, a, b string) {
			t.Run("in "+name, func(t *testing.T) {
				for ecn := range uint8(4) {
					s := spec{src: a, dst: b, proto: TCP, flags: ACK, payload: pattern(3000), class: 0xb8 | ecn, id: 3}
					p := mustParse(t, s.super(1400))
					plain := segments(t, p, nil)
					wrapped := segments(t, p, &via)
					if len(plain) != len(wrapped) {
						t.Fatalf("%d wrapped of %d", len(wrapped), len(plain))
					}
					for i, ip := range wrapped {
						o := mustParseIP(t, ip)
						class, ttl := ip[1], ip[8]
						if name == "IPv6" {
							class, ttl = trafficClass(ip), ip[7]
						}
						if class != s.class || ttl != 64 || !o.DontFragment || len(o.IP) != len(ip) {
							t.Errorf("outer header: class %#x, ttl %d, DF %v, %d bytes", class, ttl, o.DontFragment, len(o.IP))
						}
						inner, outer, ok := Decap(ip)
						if ecn == 0 && !ok || ok && (outer != via || !bytes.Equal(inner, plain[i])) {
							t.Fatalf("ECN %d: Decap: %v, %+v, %d bytes", ecn, ok, outer, len(inner))
						}
						if !ok {
							t.Fatalf("ECN %d: not decapsulated", ecn)
						}
					}
				}
			})
		})
	}
}

// A packet whose length does not fit the outer header is not emitted at all.
func TestEncapTooLong(t *testing.T) {
	s := spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(65535 - 28)}
	via := Encap{addr("10.1.0.1"), addr("10.2.0.1")}
	if got := segments(t, mustParseIP(t, s.ip()), &via); len(got) != 0 {
		t.Errorf("%d packets", len(got))
	}
}

// wrap gives ip the outer header that Segmenter writes.
func wrap(t *testing.T, ip []byte, via Encap) []byte {
	t.Helper()
	return segments(t, mustParseIP(t, ip), &via)[0]
}

func TestDecap(t *testing.T) {
	via4, via6 := Encap{addr("10.1.0.1"), addr("10.2.0.1")}, Encap{addr("fd00:1::1"), addr("fd00:2::1")}
	in4 := func(class uint8) []byte {
		return spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(9), class: class}.ip()
	}
	in6 := func(class uint8) []byte {
		return spec{src: podA6, dst: podB6, proto: UDP, payload: pattern(9), class: class}.ip()
	}
	mark := func(outer []byte) []byte { // as a router with congestion marks it
		if outer[0]>>4 == 4 {
			outer[1] |= ecnCE
			slowIPChecksum(outer[:20])
		} else {
			outer[1] |= ecnCE << 4
		}
		return outer
	}
	for name, via := range map[string]Encap{"4": via4, "6": via6} {
		for inner, in := range map[string]func(uint8) []byte{"4": in4, "6": in6} {
			t.Run(inner+" in "+name, func(t *testing.T) {
				got, outer, ok := Decap(append(wrap(t, in(2), via), 1, 2, 3)) // padding of the transport
				if !ok || outer != via || !bytes.Equal(got, in(2)) {
					t.Errorf("plain: ok %v", ok)
				}
				if got, _, ok := Decap(mark(wrap(t, in(2), via))); !ok || !bytes.Equal(got, in(3)) {
					t.Errorf("mark is not carried over: ok %v", ok)
				}
				if _, _, ok := Decap(mark(wrap(t, in(0), via))); ok {
					t.Error("mark on a packet that cannot carry it")
				}
			})
		}
	}
	lie := wrap(t, in4(0), via4)
	lie[9] = byte(IPv6IP)
	slowIPChecksum(lie[:20])
	badSum := wrap(t, in4(0), via4)
	badSum[10] ^= 1
	frag := wrap(t, in4(0), via4)
	frag[6] = 0x20
	slowIPChecksum(frag[:20])
	bad := map[string][]byte{
		"empty":           {},
		"no tunnel":       in4(0),
		"wrong inner":     lie,
		"wrong checksum":  badSum,
		"fragment":        frag,
		"truncated":       wrap(t, in4(0), via4)[:50],
		"inner too short": spec{src: podA4, dst: podB4, proto: IPIP, payload: []byte{0x45}}.ip(),
		"6 in 4 short":    spec{src: podA4, dst: podB4, proto: IPv6IP, payload: []byte{0x60}}.ip(),
	}
	for name, ip := range bad {
		if _, _, ok := Decap(ip); ok {
			t.Errorf("%s: Decap accepted it", name)
		}
	}
}

func BenchmarkSegmenter(b *testing.B) {
	for name, s := range map[string]*Segmenter{"full": {}, "partial": {Partial: true}} {
		for _, n := range []int{1400, 64000} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				sp := spec{src: podA4, dst: podB4, proto: TCP, flags: ACK, tcpOpts: timestamps, payload: pattern(n)}
				p := mustParse(b, sp.super(1368))
				dst := make([]byte, 2000)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					s.Reset(p, nil)
					for s.Next(dst) != 0 {
					}
				}
			})
		}
	}
}
