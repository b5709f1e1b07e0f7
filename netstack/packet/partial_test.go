package packet

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// fromPod returns what the pod's kernel makes of p when it forwards it: segments with full checksums, summed up as the
// virtio-net header asks, from the value that stands in the checksum field.
func fromPod(t testing.TB, p *Packet) [][]byte {
	t.Helper()
	ip := p.contiguous()
	if !p.isPartial() {
		return [][]byte{ip}
	}
	field := int(p.VNet.CsumStart+p.VNet.CsumOffset) - EthLen
	if got, want := be.Uint16(ip[field:]), slowFold(slowPseudo(ip, p.L4)); got != want {
		t.Fatalf("partial checksum %#x, want %#x", got, want)
	}
	if p.VNet.GSOType != GSONone {
		return segments(t, p, nil)
	}
	sum := ^slowFold(slowSum(ip[int(p.VNet.CsumStart)-EthLen:]))
	if sum == 0 {
		sum = 0xffff // CSUM_MANGLED_0
	}
	be.PutUint16(ip[field:], sum)
	return [][]byte{ip}
}

// Each segment has the sum of its own pseudo header, which holds its own length.
func TestSegmentPartial(t *testing.T) {
	vias := []*Encap{nil, {addr("10.1.0.1"), addr("10.2.0.1")}, {addr("fd00:1::1"), addr("fd00:2::1")}}
	seg := Segmenter{Partial: true}
	families(t, func(t *testing.T, a, b string) {
		for _, proto := range []Proto{TCP, UDP} {
			for _, n := range []int{1, 1000, 1001, 3333} {
				for _, via := range vias {
					s := spec{src: a, dst: b, proto: proto, sport: 40000, dport: 80, seq: 5, frag: 0x4000, flags: ACK, tcpOpts: timestamps, partial: true}
					s.payload = pattern(n)
					got := cut(t, &seg, mustParse(t, s.super(1000)), via)
					if len(got) != (n+999)/1000 {
						t.Fatalf("%d segments of %d bytes", len(got), n)
					}
					for i, ip := range got {
						if via != nil {
							var ok bool
							if ip, _, ok = Decap(ip); !ok {
								t.Fatal("not decapsulated")
							}
						}
						want := s
						want.seq += uint32(1000 * i)
						want.id += uint16(i)
						want.payload = s.payload[1000*i : min(1000*i+1000, n)]
						if w := want.ip(); !bytes.Equal(ip, w) {
							t.Errorf("proto %d, segment %d of %d:\ngot  % x\nwant % x", proto, i, len(got), ip[:60], w[:60])
						}
					}
				}
			}
		}
		// A packet with a full checksum, or none, stays as it is.
		for name, s := range rewriteSpecs(a, b) {
			if got := cut(t, &seg, mustParse(t, frame(VNetHdr{}, s.ip())), nil); len(got) != 1 || !bytes.Equal(got[0], s.ip()) {
				t.Errorf("%s: changed", name)
			}
		}
	})
}

// In UDP a field of 0 means "no checksum". No pseudo header sums up to 0 or to a multiple of 0xffff.
func TestPartialIsNeverNone(t *testing.T) {
	s := spec{src: "10.0.0.1", proto: UDP, partial: true}
	for last := range 0x10000 {
		s.dst = Addr{10: 0xff, 11: 0xff, 14: byte(last >> 8), 15: byte(last)}.String()
		ip := s.ip()
		want := be.Uint16(ip[26:])
		if putPartial(ip, 20, UDP, len(ip)-20); want == 0 || be.Uint16(ip[26:]) != want {
			t.Fatalf("to %s: partial checksum %#x, want %#x", s.dst, be.Uint16(ip[26:]), want)
		}
	}
}

func TestDetectPartial(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		icmp := ICMPv4
		if a == podA6 {
			icmp = ICMPv6
		}
		tcp := spec{src: a, dst: b, proto: TCP, sport: 9, dport: 80, flags: ACK, tcpOpts: timestamps, payload: pattern(501), partial: true}
		udp := spec{src: a, dst: b, proto: UDP, sport: 9, dport: 80, payload: pattern(501), partial: true}
		with := func(s spec, change func(*spec)) spec { change(&s); return s }
		edit := func(s spec, change func(ip []byte, l4 int)) []byte {
			ip := s.ip()
			change(ip, mustParseIP(t, ip).L4)
			if a == podA4 {
				slowIPChecksum(ip[:20])
			}
			return ip
		}
		tests := []struct {
			name string
			ip   []byte
			want bool
		}{
			{"TCP", tcp.ip(), true},
			{"TCP, no payload", with(tcp, func(s *spec) { s.payload = nil }).ip(), true},
			{"SYN", with(tcp, func(s *spec) { s.flags, s.payload = SYN, nil }).ip(), true},
			{"UDP", udp.ip(), true},
			{"UDP, no payload", with(udp, func(s *spec) { s.payload = nil }).ip(), true},
			{"full TCP", with(tcp, func(s *spec) { s.partial = false }).ip(), false},
			{"full UDP", with(udp, func(s *spec) { s.partial = false }).ip(), false},
			{"UDP without checksum", with(udp, func(s *spec) { s.partial, s.noCsum = false, true }).ip(), false},
			{"neither", edit(tcp, func(ip []byte, l4 int) { ip[l4+17]++ }), false},
			{"sum of another length", edit(tcp, func(ip []byte, l4 int) {
				be.PutUint16(ip[l4+16:], slowFold(slowPseudo(ip, l4)+100))
			}), false},
			{"another address", edit(udp, func(ip []byte, l4 int) { ip[l4-1]++ }), false},
			{"datagram shorter than the packet", edit(udp, func(ip []byte, l4 int) { ip[l4+5]-- }), false},
			{"ICMP", edit(spec{src: a, dst: b, proto: icmp, icmp: 3}, func(ip []byte, l4 int) {
				be.PutUint16(ip[l4+2:], slowFold(slowPseudo(ip, l4)))
			}), false},
		}
		if a == podA4 {
			tests = append(tests, []struct {
				name string
				ip   []byte
				want bool
			}{
				{"IP options", with(tcp, func(s *spec) { s.ipOpts = []byte{1, 1, 1, 0} }).ip(), true},
				{"first fragment", with(udp, func(s *spec) { s.frag, s.payload = 0x2000, pattern(504) }).ip(), false},
				{"later fragment", with(udp, func(s *spec) { s.frag = 4 }).ip(), false},
			}...)
		} else {
			dest := func(s *spec) { s.extFirst, s.ext = extDestOpts, []byte{0, 0, 1, 4, 0, 0, 0, 0} }
			atom := func(s *spec) { s.extFirst, s.ext = extFragment, []byte{0, 0, 0, 0, 1, 2, 3, 4} }
			tests = append(tests, []struct {
				name string
				ip   []byte
				want bool
			}{
				{"destination options", with(tcp, dest).ip(), true},
				{"atomic fragment", with(tcp, atom).ip(), false},
			}...)
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				orig := bytes.Clone(tt.ip)
				for _, partial := range []bool{true, false} {
					got := coalesce(t, &Coalescer{UDP: true, Partial: partial}, tt.ip)
					if len(got) != 1 || len(got[0].Tail) != 0 || !bytes.Equal(got[0].IP, orig) {
						t.Fatal("the packet is not what was added")
					}
					p, want := got[0], tt.want && partial
					if p.isPartial() != want || !want && p.VNet != (VNetHdr{}) {
						t.Errorf("looked for %v: virtio-net header %+v", partial, p.VNet)
					}
					var again Packet
					if f := again.ParseFrame(superframe(p)); f != Good || again.VNet != p.VNet {
						t.Errorf("the frame is judged %d: %+v, was %+v", f, again.VNet, p.VNet)
					}
					if want {
						checkSums(t, fromPod(t, p)[0])
					}
				}
			})
		}
	})
}

func TestCoalescePartial(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		seg := func(n int, partial bool) []byte {
			return spec{src: a, dst: b, proto: TCP, seq: uint32(100 * n), flags: ACK, frag: 0x4000, payload: pattern(100), partial: partial}.ip()
		}
		broken := func(ip []byte) []byte { ip[len(ip)-100-3]++; return ip } // in the checksum field
		for _, tt := range []struct {
			name  string
			takes bool
			in    [][]byte
			want  []int // number of tails of each packet that Next returns
		}{
			{"partial", true, [][]byte{seg(0, true), seg(1, true), seg(2, true)}, []int{2}},
			{"full", true, [][]byte{seg(0, false), seg(1, false), seg(2, false)}, []int{2}},
			{"full after partial", true, [][]byte{seg(0, true), seg(1, true), seg(2, false), seg(3, false)}, []int{1, 1}},
			{"partial after full", true, [][]byte{seg(0, false), seg(1, false), seg(2, true), seg(3, true)}, []int{1, 1}},
			{"neither between", true, [][]byte{seg(0, true), broken(seg(1, true)), seg(2, true), seg(3, true)}, []int{0, 0, 1}},
			{"neither first", true, [][]byte{broken(seg(0, false)), seg(1, false), seg(2, false)}, []int{0, 1}},
			{"not taken", false, [][]byte{seg(0, true), seg(1, true), seg(2, false), seg(3, false)}, []int{0, 0, 1}},
		} {
			var tails []int
			for _, p := range coalesce(t, &Coalescer{Partial: tt.takes}, tt.in...) {
				tails = append(tails, len(p.Tail))
				fromPod(t, p)
			}
			if !slices.Equal(tails, tt.want) {
				t.Errorf("%s: tails %v, want %v", tt.name, tails, tt.want)
			}
		}
	})
}

// Superframes of several flows are cut with partial and with full checksums, wrapped and not, and some are damaged on
// the way. The pod gets what was sent, and damage stays visible.
func TestPartialThereAndBack(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 15))
	type flow struct {
		spec
		via *Encap
	}
	var flows []*flow
	for _, fam := range [][2]string{{podA4, podB4}, {podA6, podB6}} {
		for i, via := range []*Encap{nil, {addr("10.1.0.1"), addr("10.2.0.1")}, {addr("fd00:1::1"), addr("fd00:2::1")}} {
			for _, proto := range []Proto{TCP, UDP} {
				flows = append(flows, &flow{spec{src: fam[0], dst: fam[1], proto: proto, sport: uint16(i), flags: ACK}, via})
			}
		}
	}
	c := Coalescer{UDP: true, Partial: true}
	var partial, lone, damaged int
	for range 400 {
		want, got := map[Tuple][][]byte{}, map[Tuple][][]byte{}
		var batch [][]byte
		for range 1 + r.IntN(4) {
			f := flows[r.IntN(len(flows))]
			f.payload = make([]byte, 1+r.IntN(8000))
			for i := range f.payload {
				f.payload[i] = byte(r.Uint32())
			}
			p := mustParse(t, f.super(max(8+r.IntN(1400), len(f.payload)/100)))
			f.seq += uint32(len(f.payload))
			sent := cut(t, &Segmenter{Partial: r.IntN(3) > 0}, p, f.via)
			f.id += uint16(len(sent))
			for i, whole := range segments(t, p, nil) {
				ip := sent[i]
				if f.via != nil {
					ip, _, _ = Decap(ip)
				}
				// The payload is not what its sender summed up, or the field is neither of the two sums.
				if q := mustParseIP(t, ip); r.IntN(50) == 0 {
					damaged++
					at := len(ip) - 1
					if q.detectPartial(); q.isPartial() {
						at = q.L4 + int(q.VNet.CsumOffset)
					}
					ip[at] ^= 1 << r.IntN(8)
					whole = bytes.Clone(ip)
				}
				batch = append(batch, ip)
				want[p.Tuple] = append(want[p.Tuple], withoutID(whole))
			}
		}
		for _, p := range coalesce(t, &c, batch...) {
			if p.isPartial() {
				partial++
				if len(p.Tail) == 0 {
					lone++
				}
			}
			for _, ip := range fromPod(t, p) {
				got[p.Tuple] = append(got[p.Tuple], withoutID(ip))
			}
		}
		for u := range want {
			if !slices.EqualFunc(got[u], want[u], bytes.Equal) {
				t.Fatalf("flow %+v: %d packets went in, %d came out, or they differ", u, len(want[u]), len(got[u]))
			}
		}
	}
	if partial < 300 || lone < 30 || damaged < 50 {
		t.Errorf("%d partial, %d of them alone, %d damaged: the test tests little", partial, lone, damaged)
	}
}
