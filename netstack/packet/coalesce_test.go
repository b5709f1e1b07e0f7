package packet

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// contiguous returns p as the kernel sees it when head and tail are written with one writev.
func (p *Packet) contiguous() []byte { return slices.Concat(append([][]byte{p.IP}, p.Tail...)...) }

// superframe returns the bytes that are written to a TAP for p.
func superframe(p *Packet) []byte {
	head := make([]byte, HeadLen)
	p.PutHead(head, macA, macB)
	return append(head, p.contiguous()...)
}

func coalesce(t testing.TB, c *Coalescer, ips ...[]byte) (out []*Packet) {
	t.Helper()
	c.Reset()
	for _, ip := range ips {
		if f := c.Add(ip); f != Good {
			t.Fatalf("Add: fault %d", f)
		}
	}
	pending := c.Pending()
	for p := c.Next(); p != nil; p = c.Next() {
		out = append(out, p)
		if n := len(out); n > len(pending) || p != &pending[n-1] || len(c.Pending()) != len(pending)-n {
			t.Fatalf("packet %d of %d pending packets is not the one of Next, or %d are left", n, len(pending), len(c.Pending()))
		}
	}
	if len(out) != len(pending) {
		t.Fatalf("%d packets were pending, got %d", len(pending), len(out))
	}
	return out
}

// withoutID returns a copy of ip, with identification 0 where DF is set: there the identification has no meaning (RFC
// 6864).
func withoutID(ip []byte) []byte {
	ip = bytes.Clone(ip)
	if ip[0]>>4 == 4 && ip[6]&0x40 != 0 {
		ip[4], ip[5] = 0, 0
		slowIPChecksum(ip[:20])
	}
	return ip
}

// Segmentation and coalescing undo each other, to the byte.
func TestSegmentThenCoalesce(t *testing.T) {
	c := Coalescer{UDP: true}
	families(t, func(t *testing.T, a, b string) {
		for _, proto := range []Proto{TCP, UDP} {
			for _, size := range []int{8, 601, 1400} {
				for _, n := range []int{size + 1, 2 * size, 5*size + 3, 64 * size} {
					for _, flags := range []uint8{ACK, ACK | PSH, ACK | PSH | FIN} {
						for _, frag := range []uint16{0, 0x4000} {
							if n > 65000 {
								n = 65000
							}
							s := spec{src: a, dst: b, proto: proto, sport: 9, dport: 80, seq: 0xffffff00, ack: 7, id: 65530, frag: frag, flags: flags, class: 2, tcpOpts: timestamps, payload: pattern(n)}
							want := s.super(size)
							p := mustParse(t, want)
							p.PutHead(p.Buf, macA, macB)
							got := coalesce(t, &c, segments(t, p, nil)...)
							if len(got) != 1 {
								t.Fatalf("proto %d, %d bytes by %d, flags %#x: %d packets", proto, n, size, flags, len(got))
							}
							if !bytes.Equal(superframe(got[0]), want) {
								t.Fatalf("proto %d, %d bytes by %d: differs\ngot  % x\nwant % x", proto, n, size, superframe(got[0])[:90], want[:90])
							}
							if got[0].Len() != len(p.IP) || got[0].TCPFlags != p.TCPFlags || got[0].Tuple != p.Tuple {
								t.Errorf("view %+v of %+v", got[0].Tuple, p.Tuple)
							}
							// The view can be segmented again, for example for another node.
							if again := segments(t, got[0], nil); !slices.EqualFunc(again, segments(t, p, nil), bytes.Equal) {
								t.Fatal("segments of the coalesced superframe differ")
							}
						}
					}
				}
			}
		}
	})
}

func TestCoalesceRules(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		tcp := spec{src: a, dst: b, proto: TCP, sport: 9, dport: 80, seq: 1000, ack: 7, flags: ACK, frag: 0x4000, payload: pattern(500)}
		udp := spec{src: a, dst: b, proto: UDP, sport: 9, dport: 80, frag: 0x4000, payload: pattern(500)}
		// after returns tcp as it is n segments later.
		after := func(n int, change ...func(*spec)) spec {
			s := tcp
			s.seq += uint32(500 * n)
			for _, f := range change {
				f(&s)
			}
			return s
		}
		flags := func(f uint8) func(*spec) { return func(s *spec) { s.flags = f } }
		size := func(n int) func(*spec) { return func(s *spec) { s.payload = pattern(n) } }
		raw := func(s spec, f func(ip []byte, l4 int)) []byte {
			ip := s.ip()
			p := mustParseIP(t, ip)
			f(ip, p.L4)
			if a == podA4 {
				slowIPChecksum(ip[:20])
			}
			return ip
		}
		damaged := func(s spec) []byte { return raw(s, func(ip []byte, _ int) { ip[len(ip)-1]++ }) }
		window := raw(after(1), func(ip []byte, l4 int) { ip[l4+15]++; slowL4Checksum(ip, l4, TCP) })
		ttl := raw(after(1), func(ip []byte, _ int) {
			if a == podA4 {
				ip[8]++
			} else {
				ip[7]++
			}
		})
		tests := []struct {
			name string
			in   [][]byte
			want []int // number of tails of each packet that Next returns
		}{
			{"three", [][]byte{tcp.ip(), after(1).ip(), after(2).ip()}, []int{2}},
			{"smaller last", [][]byte{tcp.ip(), after(1, size(20)).ip(), after(2).ip()}, []int{1, 0}},
			{"larger second", [][]byte{tcp.ip(), after(1, size(501)).ip()}, []int{0, 0}},
			{"push ends", [][]byte{tcp.ip(), after(1, flags(ACK|PSH)).ip(), after(2).ip(), after(3).ip()}, []int{1, 1}},
			{"push first", [][]byte{after(0, flags(ACK|PSH)).ip(), after(1).ip()}, []int{0, 0}},
			{"fin last", [][]byte{tcp.ip(), after(1, flags(ACK|FIN)).ip()}, []int{1}},
			{"gap", [][]byte{tcp.ip(), after(2).ip()}, []int{0, 0}},
			{"reordered", [][]byte{after(1).ip(), tcp.ip(), after(2).ip()}, []int{0, 0, 0}},
			{"repeated", [][]byte{tcp.ip(), tcp.ip(), after(1).ip()}, []int{0, 1}},
			{"other ack", [][]byte{tcp.ip(), after(1, func(s *spec) { s.ack++ }).ip()}, []int{0, 0}},
			{"other window", [][]byte{tcp.ip(), window}, []int{0, 0}},
			{"other options", [][]byte{tcp.ip(), after(1, func(s *spec) { s.tcpOpts = timestamps }).ip()}, []int{0, 0}},
			{"other class", [][]byte{tcp.ip(), after(1, func(s *spec) { s.class = 4 }).ip()}, []int{0, 0}},
			{"other ttl", [][]byte{tcp.ip(), ttl}, []int{0, 0}},
			{"urgent", [][]byte{tcp.ip(), after(1, flags(ACK|URG)).ip()}, []int{0, 0}},
			{"ECE", [][]byte{tcp.ip(), after(1, flags(ACK|ECE)).ip()}, []int{0, 0}},
			{"CWR first", [][]byte{after(0, flags(ACK|CWR)).ip(), after(1).ip()}, []int{0, 0}},
			{"SYN", [][]byte{after(0, flags(SYN)).ip(), after(1).ip()}, []int{0, 0}},
			{"no payload", [][]byte{after(0, size(0)).ip(), after(0).ip(), after(1).ip()}, []int{0, 1}},
			{"ack between", [][]byte{tcp.ip(), after(1, size(0)).ip(), after(1).ip()}, []int{0, 0, 0}},
			{"damaged second", [][]byte{tcp.ip(), damaged(after(1)), after(2).ip(), after(3).ip()}, []int{0, 0, 1}},
			{"damaged first", [][]byte{damaged(tcp), after(1).ip(), after(2).ip()}, []int{0, 1}},
			{"UDP", [][]byte{udp.ip(), udp.ip(), udp.ip()}, []int{2}},
			{"UDP without checksum", [][]byte{raw(udp, func(ip []byte, l4 int) { ip[l4+6], ip[l4+7] = 0, 0 }), udp.ip()}, []int{0, 0}},
			{"two flows", [][]byte{tcp.ip(), udp.ip(), after(1).ip(), udp.ip()}, []int{1, 1}},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				var orig [][]byte
				for _, ip := range tt.in {
					orig = append(orig, bytes.Clone(ip))
				}
				c := Coalescer{UDP: true}
				var tails []int
				var back [][]byte
				for _, p := range coalesce(t, &c, tt.in...) {
					tails = append(tails, len(p.Tail))
					back = append(back, segments(t, p, nil)...)
					if len(p.Tail) == 0 && p.VNet != (VNetHdr{}) {
						t.Errorf("VNet of a lone packet: %+v", p.VNet)
					}
				}
				if !slices.Equal(tails, tt.want) {
					t.Errorf("tails %v, want %v", tails, tt.want)
				}
				// Nothing is lost, damaged packets included, and each flow is in order.
				for _, proto := range []Proto{TCP, UDP} {
					of := func(all [][]byte) (out [][]byte) {
						for _, ip := range all {
							if mustParseIP(t, ip).Tuple.Proto != proto {
								continue
							}
							out = append(out, withoutID(ip))
						}
						return out
					}
					if !slices.EqualFunc(of(back), of(orig), bytes.Equal) {
						t.Errorf("proto %d: what comes back is not what was added", proto)
					}
				}
			})
		}
	})
}

func TestCoalesceIdentification(t *testing.T) {
	s := spec{src: podA4, dst: podB4, proto: TCP, flags: ACK, payload: pattern(100)}
	next := s
	next.seq += 100
	for _, tt := range []struct {
		frag, id uint16
		want     int
	}{{0, 1, 1}, {0, 0, 2}, {0, 2, 2}, {0x4000, 0, 1}, {0x4000, 9, 1}} {
		s.frag, next.frag, next.id = tt.frag, tt.frag, tt.id
		if got := coalesce(t, new(Coalescer), s.ip(), next.ip()); len(got) != tt.want {
			t.Errorf("flags %#x, identification %d after 0: %d packets, want %d", tt.frag, tt.id, len(got), tt.want)
		}
	}
}

func TestCoalesceKeepsFragmentsInPlace(t *testing.T) {
	u := spec{src: podA4, dst: podB4, proto: UDP, sport: 1, dport: 2, frag: 0x4000, payload: pattern(100)}
	f := u
	f.frag = 0x2001 // a later one, 108 bytes of data
	f.payload = pattern(104)
	got := coalesce(t, &Coalescer{UDP: true}, u.ip(), u.ip(), f.ip(), u.ip(), u.ip())
	if len(got) != 3 || len(got[0].Tail) != 1 || got[1].Frag != LaterFrag || len(got[2].Tail) != 1 {
		t.Errorf("%d packets", len(got))
	}
}

func TestCoalesceLimits(t *testing.T) {
	s := spec{src: podA4, dst: podB4, proto: TCP, flags: ACK, frag: 0x4000, payload: pattern(100)}
	var in [][]byte
	for range 128 {
		in = append(in, s.ip())
		s.seq += 100
	}
	if got := coalesce(t, new(Coalescer), in...); len(got) != 2 || len(got[0].Tail) != maxTail {
		t.Errorf("small segments: %d packets", len(got))
	}
	in, s.payload = nil, pattern(8960)
	for range 8 {
		in = append(in, s.ip())
		s.seq += 8960
	}
	got := coalesce(t, new(Coalescer), in...)
	if len(got) != 2 || got[0].Len() > 65535 {
		t.Errorf("large segments: %d packets", len(got))
	}
	for _, p := range got {
		mustParse(t, superframe(p))
	}
}

func TestCoalesceUDPOff(t *testing.T) {
	u := spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(100)}
	if got := coalesce(t, new(Coalescer), u.ip(), u.ip()); len(got) != 2 {
		t.Errorf("%d packets, want 2", len(got))
	}
}

func TestCoalesceFault(t *testing.T) {
	var c Coalescer
	u := spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(100)}
	c.Add(u.ip())
	if f := c.Add([]byte{0x45}); f != Malformed {
		t.Errorf("fault %d", f)
	}
	c.Add(u.ip())
	n := 0
	for p := c.Next(); p != nil; p = c.Next() {
		n++
	}
	if n != 2 {
		t.Errorf("%d packets came out, want the two good ones", n)
	}
}

// Many interleaved flows, more than in one batch, with colliding chains.
func TestCoalesceManyFlows(t *testing.T) {
	var c Coalescer
	for _, flows := range []int{1, 60, 300} {
		var in [][]byte
		for i := range 4 * flows {
			s := spec{src: podA4, dst: podB4, proto: TCP, flags: ACK, frag: 0x4000, sport: uint16(i % flows), seq: uint32(i / flows * 50), payload: pattern(50)}
			in = append(in, s.ip())
		}
		got := coalesce(t, &c, in...)
		if len(got) != flows {
			t.Fatalf("%d packets of %d flows", len(got), flows)
		}
		for i, p := range got {
			if len(p.Tail) != 3 || int(p.Tuple.SrcPort) != i {
				t.Fatalf("flow %d: port %d, %d tails", i, p.Tuple.SrcPort, len(p.Tail))
			}
		}
	}
}

// Every flow comes out of a batch as it went in, whatever else the batch holds.
func TestCoalesceRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	c := Coalescer{UDP: true}
	joined := 0
	for range 300 {
		var flows [4]spec
		for i := range flows {
			s := spec{src: podA4, dst: podB4, proto: TCP, sport: uint16(i), dport: 80, flags: ACK, frag: 0x4000 * uint16(r.IntN(2)), payload: pattern(64)}
			if r.IntN(2) == 0 {
				s.src, s.dst = podA6, podB6
			}
			if r.IntN(3) == 0 {
				s.proto = UDP
			}
			flows[i] = s
		}
		var in [][]byte
		want, got := map[Tuple][][]byte{}, map[Tuple][][]byte{}
		for range 1 + r.IntN(128) {
			f := &flows[r.IntN(len(flows))]
			s := *f
			if r.IntN(8) == 0 {
				s.payload = pattern(r.IntN(100))
			}
			if r.IntN(8) == 0 {
				s.flags |= 1 << r.IntN(8)
			}
			f.seq, f.id = f.seq+uint32(len(s.payload)), f.id+1
			if r.IntN(16) == 0 {
				f.seq, f.ack, f.id = f.seq+uint32(r.IntN(2)), f.ack+uint32(r.IntN(2)), f.id+uint16(r.IntN(2))
			}
			ip := s.ip()
			if r.IntN(16) == 0 && len(s.payload) > 0 {
				ip[len(ip)-1] ^= 1
			}
			in = append(in, ip)
			u := mustParseIP(t, ip).Tuple
			want[u] = append(want[u], withoutID(ip))
		}
		for _, p := range coalesce(t, &c, in...) {
			joined += len(p.Tail)
			for _, ip := range segments(t, p, nil) {
				got[p.Tuple] = append(got[p.Tuple], withoutID(ip))
			}
		}
		for u := range want {
			if !slices.EqualFunc(got[u], want[u], bytes.Equal) {
				t.Fatalf("flow %+v: %d packets went in, %d came out, or they differ", u, len(want[u]), len(got[u]))
			}
		}
	}
	if joined < 1000 {
		t.Errorf("only %d packets were joined: the test tests little", joined)
	}
}

func BenchmarkCoalescer(b *testing.B) {
	sp := spec{src: podA4, dst: podB4, proto: TCP, flags: ACK, frag: 0x4000, tcpOpts: timestamps, payload: pattern(45 * 1368)}
	for name, s := range map[string]*Segmenter{"full": {}, "partial": {Partial: true}} {
		b.Run(name, func(b *testing.B) {
			orig := cut(b, s, mustParse(b, sp.super(1368)), nil)
			first := bytes.Clone(orig[0])
			c := Coalescer{Partial: true}
			b.SetBytes(int64(len(sp.payload)))
			b.ReportAllocs()
			for b.Loop() {
				copy(orig[0], first) // its header was rewritten in place
				c.Reset()
				for _, ip := range orig {
					c.Add(ip)
				}
				n := 0
				for c.Next() != nil {
					n++
				}
				if n != 1 {
					b.Fatalf("%d packets", n)
				}
			}
		})
	}
}
