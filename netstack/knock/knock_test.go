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
}

func (s *slow) keep(p *packet.Packet, seq uint32) {
	if len(p.IP) <= Longest {
		*s = append(*s, &kept{p.Tuple, seq, bytes.Clone(p.IP), nil})
	}
}

func (s *slow) refuse(orig packet.Tuple, seq uint32, backend uint64) *kept {
	for _, k := range slices.Backward((*s)[max(0, len(*s)-size):]) {
		if k.orig == orig {
			if k.seq != seq || len(k.refused) == Most {
				return nil
			}
			k.refused = append(k.refused, backend)
			return k
		}
	}
	return nil
}

func TestRingAgainstSlow(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	var r Ring
	var s slow
	var got SYN
	for n := range 20000 {
		p := synOf(t, "10.244.1.10", uint16(rnd.IntN(2*size)), rnd.Uint32N(3), rnd.IntN(2)*50)
		seq := p.Segment().Seq
		if rnd.IntN(2) == 0 {
			r.Keep(&p.Tuple, p)
			s.keep(p, seq)
			continue
		}
		ok, want := r.Refuse(&p.Tuple, seq, uint64(n), &got), s.refuse(p.Tuple, seq, uint64(n))
		if ok != (want != nil) || ok && (!bytes.Equal(got.IP(), want.ip) || !slices.Equal(got.Refused(), want.refused)) {
			t.Fatalf("seed %d, step %d: %v %+v, want %+v", seed, n, ok, got, want)
		}
	}
}

func TestRingAllocatesOnce(t *testing.T) {
	var r Ring
	var got SYN
	p := synOf(t, "10.244.1.10", 4000, 7, 0)
	r.Keep(&p.Tuple, p)
	if n := testing.AllocsPerRun(100, func() { r.Keep(&p.Tuple, p); r.Refuse(&p.Tuple, 7, 1, &got) }); n != 0 {
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
