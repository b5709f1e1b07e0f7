package packet

import (
	"bytes"
	"testing"
)

// seeds are good superframes of every kind; the fuzzer makes them wrong.
func seeds() (out [][]byte) {
	for _, fam := range [][2]string{{podA4, podB4}, {podA6, podB6}} {
		for _, s := range rewriteSpecs(fam[0], fam[1]) {
			out = append(out, frame(VNetHdr{}, s.ip()))
			typ := uint8(3)
			if s.v6() {
				typ = 1
			}
			out = append(out, frame(VNetHdr{}, icmpError(fam[1], fam[0], typ, s.ip())))
		}
		for _, proto := range []Proto{TCP, UDP} {
			s := spec{src: fam[0], dst: fam[1], proto: proto, sport: 1, dport: 2, flags: ACK | PSH, payload: pattern(300)}
			out = append(out, s.super(0), s.super(100))
		}
	}
	u := spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(64), frag: 0x2000}
	out = append(out, frame(VNetHdr{}, u.ip()))
	u.frag = 2
	out = append(out, frame(VNetHdr{}, u.ip()))
	x := spec{src: podA6, dst: podB6, proto: TCP, flags: ACK, payload: pattern(64), extFirst: 60, ext: []byte{0, 0, 1, 4, 0, 0, 0, 0}}
	out = append(out, frame(VNetHdr{}, x.ip()), x.super(16))
	x.extFirst, x.ext = 44, []byte{0, 0, 0, 1, 1, 2, 3, 4}
	out = append(out, frame(VNetHdr{}, x.ip()))
	out = append(out, arp(1, macA, podA4, podB4), frame(VNetHdr{}, solicit(podA6, podB6, podB6, 1, 1, 2, 1, 1, 1, 1, 1)))
	via := Encap{addr(node4), addr("10.2.0.1")}
	var s Segmenter
	var p Packet
	p.ParseIP(spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(9)}.ip())
	s.Reset(&p, &via)
	wrapped := make([]byte, s.Size())
	s.Next(wrapped)
	return append(out, frame(VNetHdr{}, wrapped))
}

// FuzzParse checks that nothing panics, whatever a pod writes, and that every operation works on each good packet.
func FuzzParse(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, in []byte, repair bool) {
		// A mutation seldom keeps the checksum of the IPv4 header right, and with a wrong one nothing after it is
		// parsed.
		if ip := in[min(HeadLen, len(in)):]; repair && len(ip) >= 20 && ip[0]>>4 == 4 {
			in = bytes.Clone(in)
			ip = in[HeadLen:]
			slowIPChecksum(ip[:min(max(20, int(ip[0]&15)*4), len(ip))])
		}
		AnswerARP(bytes.Clone(in), ourMAC)
		Decap(bytes.Clone(in))
		fresh := func() *Packet {
			p := new(Packet)
			if p.ParseFrame(bytes.Clone(in)) != Good {
				return nil
			}
			return p
		}
		p := fresh()
		if p == nil {
			return
		}
		if p.L4 > p.Payload || p.Payload > len(p.IP) || &p.Buf[HeadLen] != &p.IP[0] || len(p.Buf) != HeadLen+len(p.IP) {
			t.Fatalf("offsets: L4 %d, payload %d, %d bytes", p.L4, p.Payload, len(p.IP))
		}
		Decap(bytes.Clone(p.IP))
		AnswerNS(fresh(), ourMAC)
		fuzzRewrite(t, fresh())
		fuzzShift(t, fresh())
		fuzzSegment(t, fresh())
		fuzzReply(t, fresh())
		fresh().Fragment(576, make([]byte, 576), func(ip []byte) { mustParseIP(t, ip) })
		if q := fresh(); q.ChecksumOK() {
			q.CompleteChecksum()
		}
		if q := fresh(); q.Frag != NoFrag {
			f := q.Piece()
			if f.At+len(f.Data) > 65535 || (f.At == 0) != (q.Frag == FirstFrag) {
				t.Fatalf("a fragment at %d of %d bytes", f.At, len(f.Data))
			}
			if head := make([]byte, len(q.IP)); q.Frag == FirstFrag {
				if n := q.PutWholeHead(head); n == 0 || n+len(f.Data) > 40+65535 {
					t.Fatalf("a header of %d bytes", n)
				}
			}
		}
	})
}

// fuzzRewrite rewrites a packet there and back. A right checksum stays right and a wrong one wrong; a packet with a
// right one is afterwards what it was. (A wrong one may change between the two forms of zero.)
func fuzzRewrite(t *testing.T, p *Packet) {
	orig, back := bytes.Clone(p.IP), p.Tuple
	ok := p.ChecksumOK()
	to := Tuple{Src: addr(podA4), Dst: addr(vip4), SrcPort: 7, DstPort: 8}
	if p.EtherType == EtherIPv6 {
		to.Src, to.Dst = addr(podA6), addr(vip6)
	}
	p.Rewrite(&to)
	if p.ChecksumOK() != ok && !(p.Tuple.Proto == SCTP && p.Frag != NoFrag) {
		t.Fatalf("checksum was %v, is %v", ok, !ok)
	}
	p.Rewrite(&back)
	if ok && p.Frag == NoFrag && !p.isPartial() && !bytes.Equal(orig, p.IP) {
		t.Fatalf("there and back:\ngot  % x\nwant % x", p.IP, orig)
	}
}

// fuzzShift shifts a segment's numbers there and back. What is said of the checksum of fuzzRewrite holds for it, too.
func fuzzShift(t *testing.T, p *Packet) {
	if p.Tuple.Proto != TCP || p.Frag == LaterFrag {
		return
	}
	orig, ok, by := bytes.Clone(p.IP), p.ChecksumOK(), Shift{Seq: 1 << 31, Clock: 0x10001}
	p.Terms()
	p.FromServer(by)
	p.ToServer(by)
	if p.ChecksumOK() != ok {
		t.Fatalf("checksum was %v, is %v", ok, !ok)
	}
	p.ToServer(Shift{-by.Seq, -by.Clock})
	p.FromServer(Shift{-by.Seq, -by.Clock})
	if ok && p.Frag == NoFrag && !p.isPartial() && !bytes.Equal(orig, p.IP) {
		t.Fatalf("there and back:\ngot  % x\nwant % x", p.IP, orig)
	}
}

func fuzzSegment(t *testing.T, p *Packet) {
	for _, via := range []*Encap{nil, {addr(node4), addr("10.2.0.1")}, {addr(node6), addr("fd00:2::1")}} {
		for _, between := range []bool{false, true} {
			fuzzThere(t, p, via, between)
		}
	}
}

// fuzzThere sends p through a tunnel with partial or with full checksums.
func fuzzThere(t *testing.T, p *Packet, via *Encap, between bool) {
	partial := p.isPartial()
	c, n := Coalescer{UDP: true, Partial: between}, 0
	for _, ip := range cut(t, &Segmenter{Partial: between}, p, via) {
		if via != nil {
			inner, _, ok := Decap(ip)
			if !ok {
				t.Fatal("Decap refuses what Segmenter wrapped")
			}
			ip = inner
		}
		q := mustParseIP(t, ip)
		if between {
			q.detectPartial()
		}
		if partial && (q.isPartial() != between || !q.ChecksumOK()) {
			t.Fatal("segment with a wrong checksum")
		}
		n += len(q.IP) - q.Payload
		if c.Add(ip) != Good {
			t.Fatal("segment is not coalesced")
		}
	}
	for q := c.Next(); q != nil; q = c.Next() {
		var again Packet
		if f := again.ParseFrame(superframe(q)); f != Good {
			t.Fatalf("coalesced superframe: fault %d", f)
		}
		if between && partial && !again.isPartial() {
			t.Fatal("a partial checksum was lost")
		}
		fromPod(t, q)
		n -= q.Len() - q.Payload
	}
	if n != 0 {
		t.Fatalf("%d bytes of payload lost", n)
	}
}

func fuzzReply(t *testing.T, p *Packet) {
	from := addr(node4)
	if p.EtherType == EtherIPv6 {
		from = addr(node6)
	}
	dst := make([]byte, 1280)
	for _, n := range []int{PutICMPError(dst, p, TooBig, from, 1380), PutRST(dst, p)} {
		if n != 0 {
			mustParseIP(t, dst[:n])
		}
	}
	if n := PutICMPError(dst, p, PortUnreachable, from, 0); n != 0 {
		checkSums(t, dst[:n])
	}
	var in Packet
	if !p.Embedded(&in) {
		return
	}
	ok := p.ChecksumOK()
	to := in.Tuple.Reverse()
	p.RewriteEmbedded(from, p.Tuple.Src, &to)
	if p.ChecksumOK() != ok {
		t.Fatalf("checksum of the error was %v, is %v", ok, !ok)
	}
}

// The hot paths allocate nothing.
func TestAllocs(t *testing.T) {
	s := spec{src: podA4, dst: podB4, proto: TCP, sport: 1, dport: 2, flags: ACK, payload: pattern(20000), frag: 0x4000}
	buf := s.super(1000)
	var p Packet
	var seg Segmenter
	c := Coalescer{UDP: true}
	parts := segments(t, mustParse(t, buf), nil)
	first := bytes.Clone(parts[0])
	dst := make([]byte, 2000)
	via := Encap{addr(node4), addr("10.2.0.1")}
	sctp := spec{src: podA6, dst: podB6, proto: SCTP, payload: pattern(100)}.ip()
	wrapped := wrap(t, first, via)
	quoted := icmpError(podB4, podA4, 3, first[:100])
	zero := func(name string, f func()) {
		t.Helper()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	zero("ParseFrame", func() { p.ParseFrame(buf) })
	x, y := p.Tuple, p.Tuple
	y.Dst[15]++
	zero("Rewrite", func() { p.Rewrite(&y); x, y = y, x })
	zero("Hash", func() { p.Tuple.Hash(1) })
	zero("Segmenter", func() {
		for _, v := range []*Encap{nil, &via} {
			seg.Reset(&p, v)
			for seg.Next(dst) != 0 {
			}
		}
	})
	zero("partial", func() {
		seg.Partial, c.Partial = true, true
		for range 2 {
			seg.Reset(&p, nil)
			c.Reset()
			for i := range parts {
				seg.Next(parts[i])
				c.Add(parts[i])
			}
			for c.Next() != nil {
			}
			seg.Partial, c.Partial = false, false
		}
	})
	zero("PutICMPError", func() { PutICMPError(dst, &p, HostUnreachable, via.Src, 0) })
	zero("PutRST", func() { PutRST(dst, &p) })
	zero("Coalescer", func() {
		copy(parts[0], first)
		c.Reset()
		for _, ip := range parts {
			c.Add(ip)
		}
		for c.Next() != nil {
		}
	})
	zero("Decap", func() { Decap(wrapped) })
	zero("SCTP", func() {
		p.ParseIP(sctp)
		to := p.Tuple
		to.SrcPort++
		p.Rewrite(&to)
	})
	zero("RewriteEmbedded", func() {
		p.ParseIP(quoted)
		p.RewriteEmbedded(via.Src, via.Dst, &y)
	})
}
