package knock

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// synOf returns a SYN from a port, with options as a kernel sends them.
func synOf(t testing.TB, from string, port uint16, seq uint32, payload int) *packet.Packet {
	t.Helper()
	s := netstacktest.Spec{
		Src: netip.AddrPortFrom(netip.MustParseAddr(from), port), Dst: netip.MustParseAddrPort("10.96.0.1:80"), Proto: packet.TCP, TCPFlags: packet.SYN, Seq: seq,
		Options: []byte{2, 4, 5, 0x64, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}, Payload: make([]byte, payload),
	}
	if s.Src.Addr().Is6() {
		s.Dst = netip.MustParseAddrPort("[fd00:10:96::1]:80")
	}
	p := new(packet.Packet)
	if fault := p.ParseIP(s.IP()); fault != packet.Good {
		t.Fatalf("fault %d", fault)
	}
	return p
}

func TestRing(t *testing.T) {
	const extended = "fd00:10:244:1::11" // its SYN has an extension header
	for _, from := range []string{"10.244.1.10", "fd00:10:244:1::10", extended} {
		var r Ring
		var got SYN
		p := synOf(t, from, 4000, 7, 0)
		if from == extended {
			// The header is followed by TCP and has eight bytes of padding (RFC 8200 4.6).
			ip := slices.Insert(bytes.Clone(p.IP), 40, 6, 0, 1, 4, 0, 0, 0, 0)
			ip[5], ip[6] = ip[5]+8, 60
			if fault := p.ParseIP(ip); fault != packet.Good || p.L4 != 48 {
				t.Fatalf("fault %d", fault)
			}
		}
		p.VNet = packet.VNetHdr{Flags: packet.NeedsCsum, CsumStart: 34, CsumOffset: 16}
		want := bytes.Clone(p.IP)
		if r.Refuse(&p.Tuple, 7, 1, &got) {
			t.Error("an empty Ring has a SYN")
		}
		r.Keep(&p.Tuple, p)
		p.IP[0] = 0 // it is translated afterwards
		for name, not := range map[string]packet.Tuple{
			"another port":  synOf(t, from, 4001, 7, 0).Tuple,
			"another space": {Src: p.Tuple.Src, Dst: p.Tuple.Dst, SrcPort: 4000, DstPort: 80, Space: 1, Proto: packet.TCP},
		} {
			if r.Refuse(&not, 7, 1, &got) {
				t.Errorf("%s: it is kept", name)
			}
		}
		if r.Refuse(&p.Tuple, 8, 1, &got) {
			t.Error("a reset that does not acknowledge the SYN refuses it")
		}
		for n := uint64(1); n <= Most; n++ {
			if !r.Refuse(&p.Tuple, 7, n, &got) || !bytes.Equal(got.IP(), want) || got.VNet != p.VNet || got.Orig != p.Tuple {
				t.Fatalf("%s: it is kept as %+v", from, got)
			}
			if l := got.Refused(); len(l) != int(n) || l[n-1] != n {
				t.Errorf("refused by %d, want 1 to %d", l, n)
			}
		}
		if r.Refuse(&p.Tuple, 7, Most+1, &got) {
			t.Errorf("%d backends may refuse it", Most+1)
		}
		long := synOf(t, from, 4002, 7, Longest)
		if r.Keep(&long.Tuple, long); r.Refuse(&long.Tuple, 7, 1, &got) {
			t.Error("a long SYN is kept")
		}
	}
}

// slow is a Ring that is obviously right: a list of what was kept.
type slow []*kept

type kept struct {
	orig    packet.Tuple
	seq     uint32
	ip      []byte
	refused []uint64
	// open is set when its client has heard terms, and served when a backend has accepted it and not given it up.
	open, served bool
	terms        packet.Terms
}

func (s *slow) keep(p *packet.Packet, seq uint32) {
	if len(p.IP) <= Longest {
		*s = append(*s, &kept{orig: p.Tuple, seq: seq, ip: bytes.Clone(p.IP)})
	}
}

func (s *slow) find(orig packet.Tuple) *kept {
	for _, k := range slices.Backward((*s)[max(0, len(*s)-size):]) {
		if k.orig == orig {
			return k
		}
	}
	return &kept{refused: make([]uint64, Most)}
}

func (s *slow) refuse(orig packet.Tuple, seq uint32, backend uint64) *kept {
	k := s.find(orig)
	if k.seq != seq || k.served || len(k.refused) == Most {
		return nil
	}
	k.refused = append(k.refused, backend)
	return k
}

func (s *slow) accept(orig packet.Tuple, ack uint32, terms packet.Terms) {
	if k := s.find(orig); !k.open && ack == k.seq+1 {
		k.open, k.served, k.terms = true, true, terms
	}
}

func (s *slow) abandon(orig packet.Tuple, rst packet.Segment, backend uint64) *kept {
	k := s.find(orig)
	heard := rst.Flags&packet.ACK != 0 && rst.Ack != k.seq+1
	if !k.served || len(k.refused) == Most || k.terms.Other || heard || rst.Seq != k.terms.Seq+1 {
		return nil
	}
	k.served, k.refused = false, append(k.refused, backend)
	return k
}

func (s *slow) takeOver(orig packet.Tuple, terms packet.Terms) (by packet.Shift, ok bool) {
	k := s.find(orig)
	if !k.open || k.served {
		return by, false
	}
	k.served = terms.MSS >= k.terms.MSS && !terms.Other
	return packet.Shift{Seq: k.terms.Seq - terms.Seq}, k.served
}

func TestRingAgainstSlow(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	var r Ring
	var s slow
	var got SYN
	for n := range 40000 {
		p := synOf(t, "10.244.1.10", uint16(rnd.IntN(size+8)), rnd.Uint32N(2), rnd.IntN(2)*50)
		seq, terms := p.Segment().Seq, packet.Terms{Seq: rnd.Uint32N(2), MSS: uint16(1 + rnd.IntN(2)), Other: rnd.IntN(8) == 0}
		var ok bool
		var want *kept
		switch rnd.IntN(7) {
		case 0:
			r.Keep(&p.Tuple, p)
			s.keep(p, seq)
			continue
		case 1, 2:
			r.Answered(&p.Tuple, seq+1, terms)
			s.accept(p.Tuple, seq+1, terms)
			continue
		case 3:
			by, ok := r.TakeOver(&p.Tuple, terms)
			if want, wantOK := s.takeOver(p.Tuple, terms); ok != wantOK || ok && by != want {
				t.Fatalf("seed %d, step %d: taken over %v by %+v, want %v %+v", seed, n, ok, by, wantOK, want)
			}
			continue
		case 4:
			ok = r.Asked(&p.Tuple, &got)
			if want = s.find(p.Tuple); !want.open || want.served {
				want = nil
			}
		case 5:
			rst := packet.Segment{Seq: terms.Seq + 1, Ack: seq + 1, Flags: packet.RST | []uint8{0, packet.ACK}[rnd.IntN(2)]}
			ok, want = r.Abandon(&p.Tuple, rst, uint64(n), &got), s.abandon(p.Tuple, rst, uint64(n))
		default:
			ok, want = r.Refuse(&p.Tuple, seq, uint64(n), &got), s.refuse(p.Tuple, seq, uint64(n))
		}
		if ok != (want != nil) || ok && (!bytes.Equal(got.IP(), want.ip) || !slices.Equal(got.Refused(), want.refused) || got.Moving() != want.open) {
			t.Fatalf("seed %d, step %d: %v %+v, want %+v", seed, n, ok, got, want)
		}
		if ok && got.Moving() && (got.Next() != want.terms.Seq+1 || got.AckedBy(packet.Segment{Flags: packet.ACK, Ack: seq + 1}) != (want.seq == seq)) {
			t.Fatalf("seed %d, step %d: %+v, want %+v", seed, n, got, want)
		}
	}
}

func TestRingAllocatesOnce(t *testing.T) {
	var r Ring
	var got SYN
	p := synOf(t, "10.244.1.10", 4000, 7, 0)
	r.Keep(&p.Tuple, p)
	if n := testing.AllocsPerRun(100, func() { r.Keep(&p.Tuple, p); r.Refuse(&p.Tuple, 7, 1, &got); r.Answered(&p.Tuple, 8, packet.Terms{}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkKeep(b *testing.B) {
	var r Ring
	p := synOf(b, "10.244.1.10", 4000, 7, 0)
	for b.Loop() {
		r.Keep(&p.Tuple, p)
	}
}
