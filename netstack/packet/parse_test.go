package packet

import (
	"bytes"
	"testing"
)

func TestIPv4Options(t *testing.T) {
	for _, c := range []struct {
		name string
		opts []byte
		good bool
	}{
		{"no-operations", []byte{1, 1, 1, 1}, true},
		{"end, and what is behind it", []byte{0, 131, 0, 0}, true},
		{"record route", []byte{7, 7, 4, 0, 0, 0, 0, 0}, true},
		{"record route, full", []byte{7, 7, 8, 10, 0, 0, 1, 0}, true},
		{"timestamp", []byte{68, 8, 5, 0, 0, 0, 0, 0}, true},
		{"router alert", []byte{148, 4, 0, 0}, true},
		{"an option that nobody knows", []byte{1, 30, 3, 9}, true},
		{"loose source route", []byte{131, 7, 4, 10, 0, 0, 1, 0}, false},
		{"strict source route", []byte{137, 7, 4, 10, 0, 0, 1, 0}, false},
		{"loose source route, done", []byte{131, 7, 8, 10, 0, 0, 1, 0}, false},
		{"source route behind another", []byte{148, 4, 0, 0, 131, 3, 4, 0}, false},
		{"source route behind no-operations", []byte{1, 131, 3, 4}, false},
		{"no length", []byte{1, 1, 1, 7}, false},
		{"length 0", []byte{7, 0, 4, 0}, false},
		{"length 1", []byte{148, 1, 0, 0}, false},
		{"longer than the header", []byte{7, 5, 4, 0}, false},
		{"record route without a pointer", []byte{7, 2, 0, 0}, false},
		{"record route with a pointer into its head", []byte{7, 4, 3, 0}, false},
		{"timestamp without flags", []byte{68, 3, 5, 0}, false},
		{"timestamp with a pointer into its head", []byte{68, 4, 4, 0}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ip := spec{src: podA4, dst: podB4, proto: UDP, sport: 5, dport: 53, ipOpts: c.opts}.ip()
			var p Packet
			if fault := p.ParseIP(ip); (fault == Good) != c.good {
				t.Errorf("fault %d", fault)
			}
			if fault := p.ParseFrame(frame(VNetHdr{}, ip)); (fault == Good) != c.good {
				t.Errorf("in a frame: fault %d", fault)
			}
		})
	}
}

func TestVNetHdr(t *testing.T) {
	want := VNetHdr{Flags: 1, GSOType: 0x81, HdrLen: 0x0102, GSOSize: 0x0304, CsumStart: 0x0506, CsumOffset: 0x0708}
	var b [VNetHdrLen]byte
	want.Encode(b[:])
	if b != [VNetHdrLen]byte{1, 0x81, 2, 1, 4, 3, 6, 5, 8, 7} {
		t.Errorf("Encode = % x", b)
	}
	var got VNetHdr
	if got.Decode(b[:]); got != want {
		t.Errorf("Decode = %+v", got)
	}
}

func TestParse(t *testing.T) {
	tcp4 := spec{src: podA4, dst: podB4, proto: TCP, sport: 40000, dport: 80, flags: ACK | PSH, tcpOpts: timestamps, payload: pattern(10), frag: 0x4000, id: 7}
	tcp6 := spec{src: podA6, dst: podB6, proto: TCP, sport: 40000, dport: 80, flags: SYN, payload: nil}
	opts := tcp4
	opts.ipOpts = []byte{1, 1, 1, 0}
	ext := tcp6
	ext.extFirst, ext.extLast = 0, 8
	ext.ext = []byte{60, 0, 1, 4, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0}
	atomic := spec{src: podA6, dst: podB6, proto: UDP, sport: 5, dport: 53, extFirst: 44, ext: make([]byte, 8)}
	first6 := spec{src: podA6, dst: podB6, proto: UDP, sport: 5, dport: 53, payload: pattern(16), extFirst: 44, ext: []byte{0, 0, 0, 1, 9, 8, 7, 6}}
	later6 := first6
	later6.ext = []byte{0, 0, 0, 16, 9, 8, 7, 6}
	first4 := spec{src: podA4, dst: podB4, proto: UDP, sport: 5, dport: 53, payload: pattern(16), frag: 0x2000, id: 99}
	later4 := first4
	later4.frag = 3
	tests := []struct {
		name string
		s    spec
		want Packet
	}{
		{"TCP", tcp4, Packet{EtherType: EtherIPv4, TCPFlags: ACK | PSH, DontFragment: true, L4: 20, Payload: 52, Tuple: Tuple{SrcPort: 40000, DstPort: 80}}},
		{"TCP/6", tcp6, Packet{EtherType: EtherIPv6, TCPFlags: SYN, DontFragment: true, L4: 40, Payload: 60, Tuple: Tuple{SrcPort: 40000, DstPort: 80}}},
		{"options", opts, Packet{EtherType: EtherIPv4, TCPFlags: ACK | PSH, DontFragment: true, L4: 24, Payload: 56, Tuple: Tuple{SrcPort: 40000, DstPort: 80}}},
		{"extensions", ext, Packet{EtherType: EtherIPv6, TCPFlags: SYN, DontFragment: true, L4: 56, Payload: 76, Tuple: Tuple{SrcPort: 40000, DstPort: 80}}},
		{"atomic", atomic, Packet{EtherType: EtherIPv6, DontFragment: true, L4: 48, Payload: 56, Tuple: Tuple{SrcPort: 5, DstPort: 53}, fragAt: 40}},
		{"first/6", first6, Packet{EtherType: EtherIPv6, DontFragment: true, Frag: FirstFrag, FragID: 0x09080706, L4: 48, Payload: 56, Tuple: Tuple{SrcPort: 5, DstPort: 53}, fragAt: 40}},
		{"later/6", later6, Packet{EtherType: EtherIPv6, DontFragment: true, Frag: LaterFrag, FragID: 0x09080706, L4: 48, Payload: 48, fragAt: 40}},
		{"first", first4, Packet{EtherType: EtherIPv4, Frag: FirstFrag, FragID: 99, L4: 20, Payload: 28, Tuple: Tuple{SrcPort: 5, DstPort: 53}}},
		{"later", later4, Packet{EtherType: EtherIPv4, Frag: LaterFrag, FragID: 99, L4: 20, Payload: 20}},
		{"echo", spec{src: podA4, dst: podB4, proto: ICMPv4, icmp: 8, sport: 77}, Packet{EtherType: EtherIPv4, ICMPType: 8, L4: 20, Payload: 28, Tuple: Tuple{SrcPort: 77, DstPort: 77}}},
		{"echo/6", spec{src: podA6, dst: podB6, proto: ICMPv6, icmp: 129, sport: 77}, Packet{EtherType: EtherIPv6, DontFragment: true, ICMPType: 129, L4: 40, Payload: 48, Tuple: Tuple{SrcPort: 77, DstPort: 77}}},
		{"timestamp", spec{src: podA4, dst: podB4, proto: ICMPv4, icmp: 13, code: 1, sport: 77}, Packet{EtherType: EtherIPv4, ICMPType: 13, ICMPCode: 1, L4: 20, Payload: 28}},
		{"SCTP", spec{src: podA4, dst: podB4, proto: SCTP, sport: 7, dport: 8, payload: []byte{0, 3, 0, 16}}, Packet{EtherType: EtherIPv4, L4: 20, Payload: 32, TCPFlags: ACK, Tuple: Tuple{SrcPort: 7, DstPort: 8}}},
		{"unknown", spec{src: podA4, dst: podB4, proto: 47, payload: pattern(4)}, Packet{EtherType: EtherIPv4, L4: 20, Payload: 24}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ip := tt.s.ip()
			tt.want.Tuple.Src, tt.want.Tuple.Dst, tt.want.Tuple.Proto = addr(tt.s.src), addr(tt.s.dst), tt.s.proto
			compare := func(got *Packet) {
				t.Helper()
				if !bytes.Equal(got.IP, ip) {
					t.Errorf("IP is %d bytes, want %d", len(got.IP), len(ip))
				}
				g := *got
				g.Buf, g.IP, g.Tail = nil, nil, nil
				w := tt.want
				if g.Tuple != w.Tuple || g.EtherType != w.EtherType || g.Frag != w.Frag || g.FragID != w.FragID || g.TCPFlags != w.TCPFlags ||
					g.ICMPType != w.ICMPType || g.ICMPCode != w.ICMPCode || g.DontFragment != w.DontFragment ||
					g.L4 != w.L4 || g.Payload != w.Payload || g.fragAt != w.fragAt || g.VNet != w.VNet {
					t.Errorf("got  %+v\nwant %+v", g, w)
				}
			}
			compare(mustParseIP(t, ip))
			// Ethernet pads short frames, with any number of bytes: the padding is not part of the packet.
			p := mustParse(t, append(frame(VNetHdr{}, ip), 0, 0, 0, 0, 0))
			compare(p)
			if len(p.Buf) != HeadLen+len(ip) || p.SrcMAC() != macA || p.DstMAC() != macB {
				t.Errorf("Buf %d bytes, MACs %x %x", len(p.Buf), p.SrcMAC(), p.DstMAC())
			}
		})
	}
}

// TestNoSegment: nothing is read where a TCP header would be in what has none.
func TestNoSegment(t *testing.T) {
	for name, s := range map[string]spec{
		"UDP":              {src: podA4, dst: podB4, proto: UDP, sport: 5, dport: 53, payload: pattern(40)},
		"SCTP":             {src: podA6, dst: podB6, proto: SCTP, sport: 5, dport: 53, payload: pattern(40)},
		"a later fragment": {src: podA4, dst: podB4, proto: TCP, sport: 5, dport: 53, payload: pattern(40), frag: 3, id: 99},
	} {
		got := mustParseIP(t, s.ip()).Segment()
		if s.proto == SCTP {
			got.Flags = 0 // of its chunks
		}
		if got != (Segment{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	cut := Packet{IP: pattern(28), L4: 20, Tuple: Tuple{Proto: TCP}} // as an ICMP error quotes it
	if got := cut.Segment(); got != (Segment{}) {
		t.Errorf("eight bytes of a header: %+v", got)
	}
}

func TestParseMalformed(t *testing.T) {
	tcp4 := spec{src: podA4, dst: podB4, proto: TCP, flags: ACK, payload: pattern(40)}
	tcp6 := spec{src: podA6, dst: podB6, proto: TCP, flags: ACK, payload: pattern(40)}
	udp4 := spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(40)}
	with := func(s spec, change func(ip []byte) []byte) []byte {
		ip := change(s.ip())
		if len(ip) >= 20 && ip[0]>>4 == 4 {
			if hl := int(ip[0]&15) * 4; hl >= 20 && hl <= len(ip) {
				slowIPChecksum(ip[:hl])
			}
		}
		return ip
	}
	set := func(at int, v ...byte) func([]byte) []byte {
		return func(ip []byte) []byte { copy(ip[at:], v); return ip }
	}
	ext := func(first uint8, b ...byte) []byte {
		s := tcp6
		s.extFirst, s.ext = first, b
		return s.ip()
	}
	long := make([]byte, 8*(maxExtHeaders+1))
	for i := range maxExtHeaders {
		long[8*i] = 60
	}
	many := spec{src: podA6, dst: podB6, proto: TCP, extFirst: 60, extLast: 8 * maxExtHeaders, ext: long}
	frag := func(s spec, f uint16) []byte { s.frag = f; return s.ip() }
	badSum := tcp4.ip()
	badSum[10] ^= 1
	odd := udp4
	odd.payload = pattern(41)
	tests := map[string][]byte{
		"empty":                       {},
		"one byte":                    {0x45},
		"version 5":                   with(tcp4, set(0, 0x55)),
		"header of 16 bytes":          with(tcp4, set(0, 0x44)),
		"header longer than packet":   with(udp4, func(ip []byte) []byte { ip[0] = 0x4f; be.PutUint16(ip[2:], 30); return ip[:30] }),
		"total shorter than header":   with(tcp4, set(2, 0, 19)),
		"total longer than frame":     with(tcp4, set(2, 1, 0)),
		"wrong IPv4 checksum":         badSum,
		"IPv6 truncated":              tcp6.ip()[:39],
		"IPv6 longer than frame":      with(tcp6, set(4, 1, 0)),
		"mapped source":               with(tcp6, set(8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 0, 5)),
		"mapped destination":          with(tcp6, set(24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 0, 5)),
		"TCP truncated":               with(tcp4, func(ip []byte) []byte { be.PutUint16(ip[2:], 39); return ip[:39] }),
		"TCP offset 4":                with(tcp4, set(32, 0x40)),
		"TCP offset beyond packet":    with(spec{src: podA4, dst: podB4, proto: TCP}, set(32, 0x60)),
		"UDP length 7":                with(udp4, set(24, 0, 7)),
		"UDP length beyond packet":    with(udp4, set(24, 0, 49)),
		"UDP truncated":               with(udp4, func(ip []byte) []byte { be.PutUint16(ip[2:], 27); return ip[:27] }),
		"ICMP truncated":              with(spec{src: podA4, dst: podB4, proto: ICMPv4}, func(ip []byte) []byte { be.PutUint16(ip[2:], 27); return ip[:27] }),
		"SCTP truncated":              with(spec{src: podA4, dst: podB4, proto: SCTP}, func(ip []byte) []byte { be.PutUint16(ip[2:], 31); return ip[:31] }),
		"tiny first fragment":         with(spec{src: podA4, dst: podB4, proto: UDP, frag: 0x2000, payload: pattern(0)}, set(9, byte(TCP))),
		"fragment overlapping header": frag(tcp4, 1),
		"fragment of odd length":      frag(odd, 0x2000),
		"fragment beyond 64 KiB":      frag(udp4, 0x1fff),
		"empty later fragment":        with(spec{src: podA4, dst: podB4, proto: 47, frag: 0x0010}, set(0, 0x45)),
		"hop-by-hop not first":        ext(60, 0, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0),
		"segments left":               ext(43, 6, 0, 0, 1, 0, 0, 0, 0),
		"extension beyond packet":     ext(60, 6, 200, 1, 4, 0, 0, 0, 0),
		"two fragment headers":        ext(44, 44, 0, 0, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0, 1)[:],
		"too many extensions":         many.ip(),
		"jumbogram":                   with(tcp6, set(4, 0, 0)),
	}
	// spec.ip sets the next header of the last extension at extLast; these two specs name theirs in the first one.
	tests["hop-by-hop not first"][40] = 0
	tests["two fragment headers"][40] = 44
	for name, ip := range tests {
		t.Run(name, func(t *testing.T) {
			var p Packet
			if f := p.ParseIP(ip); f != Malformed {
				t.Errorf("ParseIP: fault %d, want Malformed", f)
			}
			if len(ip) == 0 {
				return
			}
			if f := p.ParseFrame(frame(VNetHdr{}, ip)); f != Malformed {
				t.Errorf("ParseFrame: fault %d, want Malformed", f)
			}
		})
	}
	t.Run("as many extensions as allowed", func(t *testing.T) {
		many.ext, many.extLast = many.ext[8:], many.extLast-8
		mustParseIP(t, many.ip())
	})
}

func TestParseFrameNotIP(t *testing.T) {
	good := frame(VNetHdr{}, spec{src: podA4, dst: podB4, proto: TCP}.ip())
	for n := range HeadLen {
		if f := new(Packet).ParseFrame(good[:n]); f != Malformed {
			t.Fatalf("%d bytes: fault %d, want Malformed", n, f)
		}
	}
	for _, typ := range []uint16{EtherARP, 0x8100, 0x88a8, 0x0026} {
		b := bytes.Clone(good)
		be.PutUint16(b[22:], typ)
		var p Packet
		if f := p.ParseFrame(b); f != NotIP || p.EtherType != typ {
			t.Errorf("EtherType %#x: fault %d, EtherType %#x", typ, f, p.EtherType)
		}
	}
	be.PutUint16(good[22:], EtherIPv6)
	if f := new(Packet).ParseFrame(good); f != Malformed {
		t.Errorf("IPv4 under the EtherType of IPv6: fault %d, want Malformed", f)
	}
}

func TestParseFrameOffload(t *testing.T) {
	tcp4 := spec{src: podA4, dst: podB4, proto: TCP, flags: ACK, payload: pattern(4000)}
	tcp6 := spec{src: podA6, dst: podB6, proto: TCP, flags: ACK, payload: pattern(4000)}
	udp4 := spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(4000)}
	udp6 := spec{src: podA6, dst: podB6, proto: UDP, payload: pattern(4000)}
	sctp := spec{src: podA4, dst: podB4, proto: SCTP, payload: pattern(400)}
	icmp := spec{src: podA4, dst: podB4, proto: ICMPv4, icmp: 8, payload: pattern(400)}
	optioned := tcp4
	optioned.ipOpts = []byte{1, 1, 1, 0}
	ext := tcp6
	ext.extFirst, ext.ext = 60, []byte{0, 0, 1, 4, 0, 0, 0, 0}
	atomic := tcp6
	atomic.extFirst, atomic.ext = 44, make([]byte, 8)
	first := tcp4
	first.frag, first.payload = 0x2000, pattern(796)
	later := udp4
	later.frag = 100
	surplus := udp4.ip()
	be.PutUint16(surplus[24:], 3000)
	syn, rst, empty := tcp4, tcp4, tcp4
	syn.flags, rst.flags, empty.payload = SYN, RST|ACK, nil
	small := tcp4
	small.payload = pattern(1000)
	tiny := tcp4
	tiny.payload = pattern(20000)
	with := func(v VNetHdr, change func(*VNetHdr)) VNetHdr { change(&v); return v }
	plain := func(v VNetHdr) VNetHdr { v.GSOType, v.GSOSize = GSONone, 0; return v }
	tests := []struct {
		name string
		ip   []byte
		v    VNetHdr
		fate Fault
		want VNetHdr // when Good
	}{
		{"nothing", tcp4.ip(), VNetHdr{}, Good, VNetHdr{}},
		{"fields without flags", tcp4.ip(), VNetHdr{GSOSize: 9, CsumStart: 8, CsumOffset: 7, HdrLen: 6}, Good, VNetHdr{}},
		{"data valid is not believed", tcp4.ip(), VNetHdr{Flags: DataValid}, Good, VNetHdr{}},
		{"partial TCP", tcp4.ip(), tcp4.offload(0), Good, tcp4.offload(0)},
		{"partial TCP/6", tcp6.ip(), tcp6.offload(0), Good, tcp6.offload(0)},
		{"partial UDP", udp4.ip(), udp4.offload(0), Good, udp4.offload(0)},
		{"superframe TCP", tcp4.ip(), tcp4.offload(1400), Good, tcp4.offload(1400)},
		{"superframe TCP/6", tcp6.ip(), tcp6.offload(1400), Good, tcp6.offload(1400)},
		{"superframe UDP", udp4.ip(), udp4.offload(1400), Good, udp4.offload(1400)},
		{"superframe UDP/6", udp6.ip(), udp6.offload(1400), Good, udp6.offload(1400)},
		{"superframe with options", optioned.ip(), optioned.offload(1400), Good, optioned.offload(1400)},
		{"superframe with extension", ext.ip(), ext.offload(1400), Good, ext.offload(1400)},
		{"ECN", tcp4.ip(), with(tcp4.offload(1400), func(v *VNetHdr) { v.GSOType |= GSOECN }), Good, with(tcp4.offload(1400), func(v *VNetHdr) { v.GSOType |= GSOECN })},
		{"hdr_len is recomputed", tcp4.ip(), with(tcp4.offload(1400), func(v *VNetHdr) { v.HdrLen = 65535 }), Good, tcp4.offload(1400)},
		{"one segment only", small.ip(), small.offload(1400), Good, plain(small.offload(0))},

		{"unknown flag", tcp4.ip(), with(tcp4.offload(0), func(v *VNetHdr) { v.Flags |= 4 }), BadOffload, VNetHdr{}},
		{"GSO without checksum", tcp4.ip(), with(tcp4.offload(1400), func(v *VNetHdr) { v.Flags = 0 }), BadOffload, VNetHdr{}},
		{"GSO with data valid", tcp4.ip(), with(tcp4.offload(1400), func(v *VNetHdr) { v.Flags = DataValid }), BadOffload, VNetHdr{}},
		{"ECN alone", tcp4.ip(), with(tcp4.offload(1400), func(v *VNetHdr) { v.GSOType = GSOECN }), BadOffload, VNetHdr{}},
		{"ECN with UDP", udp4.ip(), with(udp4.offload(1400), func(v *VNetHdr) { v.GSOType |= GSOECN }), BadOffload, VNetHdr{}},
		{"csum_start low", tcp4.ip(), with(tcp4.offload(0), func(v *VNetHdr) { v.CsumStart-- }), BadOffload, VNetHdr{}},
		{"csum_start in payload", tcp4.ip(), with(tcp4.offload(0), func(v *VNetHdr) { v.CsumStart += 20 }), BadOffload, VNetHdr{}},
		{"csum_start without Ethernet", tcp4.ip(), with(tcp4.offload(0), func(v *VNetHdr) { v.CsumStart -= EthLen }), BadOffload, VNetHdr{}},
		{"csum_start beyond", tcp4.ip(), with(tcp4.offload(0), func(v *VNetHdr) { v.CsumStart = 65535 }), BadOffload, VNetHdr{}},
		{"csum_offset", tcp4.ip(), with(tcp4.offload(0), func(v *VNetHdr) { v.CsumOffset = 6 }), BadOffload, VNetHdr{}},
		{"csum_offset beyond", tcp4.ip(), with(tcp4.offload(0), func(v *VNetHdr) { v.CsumOffset = 65535 }), BadOffload, VNetHdr{}},
		{"TCPv6 type on IPv4", tcp4.ip(), with(tcp4.offload(1400), func(v *VNetHdr) { v.GSOType = GSOTCPv6 }), BadOffload, VNetHdr{}},
		{"TCPv4 type on IPv6", tcp6.ip(), with(tcp6.offload(1400), func(v *VNetHdr) { v.GSOType = GSOTCPv4 }), BadOffload, VNetHdr{}},
		{"UDP type on TCP", tcp4.ip(), with(tcp4.offload(1400), func(v *VNetHdr) { v.GSOType = GSOUDPL4 }), BadOffload, VNetHdr{}},
		{"TCP type on UDP", udp4.ip(), with(udp4.offload(1400), func(v *VNetHdr) { v.GSOType = GSOTCPv4 }), BadOffload, VNetHdr{}},
		{"UFO", udp4.ip(), with(udp4.offload(1400), func(v *VNetHdr) { v.GSOType = 3 }), BadOffload, VNetHdr{}},
		{"type 2", tcp4.ip(), with(tcp4.offload(1400), func(v *VNetHdr) { v.GSOType = 2 }), BadOffload, VNetHdr{}},
		{"gso_size 0", tcp4.ip(), with(tcp4.offload(1400), func(v *VNetHdr) { v.GSOSize = 0 }), BadOffload, VNetHdr{}},
		{"gso_size 1", tcp4.ip(), tcp4.offload(1), BadOffload, VNetHdr{}},
		{"too many TCP segments", tiny.ip(), tiny.offload(8), BadOffload, VNetHdr{}},
		{"too many UDP segments", udp4.ip(), udp4.offload(4000 / 129), BadOffload, VNetHdr{}},
		{"no payload", empty.ip(), empty.offload(1400), BadOffload, VNetHdr{}},
		{"SYN", syn.ip(), syn.offload(1400), BadOffload, VNetHdr{}},
		{"RST", rst.ip(), rst.offload(1400), BadOffload, VNetHdr{}},
		{"checksum of SCTP", sctp.ip(), VNetHdr{Flags: NeedsCsum, CsumStart: 34, CsumOffset: 8}, BadOffload, VNetHdr{}},
		{"checksum of ICMP", icmp.ip(), VNetHdr{Flags: NeedsCsum, CsumStart: 34, CsumOffset: 2}, BadOffload, VNetHdr{}},
		{"first fragment", first.ip(), first.offload(0), BadOffload, VNetHdr{}},
		{"superframe of fragments", first.ip(), first.offload(100), BadOffload, VNetHdr{}},
		{"later fragment", later.ip(), later.offload(0), BadOffload, VNetHdr{}},
		{"atomic fragment", atomic.ip(), atomic.offload(1400), BadOffload, VNetHdr{}},
		{"bytes behind the datagram", surplus, udp4.offload(0), BadOffload, VNetHdr{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p Packet
			f := p.ParseFrame(frame(tt.v, tt.ip))
			if f != tt.fate {
				t.Fatalf("fault %d, want %d", f, tt.fate)
			}
			if f == Good && p.VNet != tt.want {
				t.Errorf("VNet %+v, want %+v", p.VNet, tt.want)
			}
		})
	}
}

func TestPutHead(t *testing.T) {
	s := spec{src: podA6, dst: podB6, proto: TCP, flags: ACK, tcpOpts: timestamps, payload: pattern(4000)}
	b := s.super(1400)
	p := mustParse(t, b)
	want := bytes.Clone(b[:HeadLen])
	copy(want[VNetHdrLen:], []byte{9, 9, 9, 9, 9, 9, 8, 8, 8, 8, 8, 8})
	p.VNet.HdrLen = 3
	p.PutHead(p.Buf, MAC{8, 8, 8, 8, 8, 8}, MAC{9, 9, 9, 9, 9, 9})
	if !bytes.Equal(b[:HeadLen], want) {
		t.Errorf("got  % x\nwant % x", b[:HeadLen], want)
	}
}
