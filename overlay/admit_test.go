package overlay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestAdmitTwin compares admit with the obvious way: each peer in turn is held against all that were admitted.
func TestAdmitTwin(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	prefix := func() netip.Prefix {
		if random.IntN(4) == 0 {
			return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(random.IntN(4))}), []int{48, 64, 128}[random.IntN(3)]).Masked()
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(random.IntN(4)), byte(random.IntN(8)), byte(random.IntN(4) * 64)}), []int{16, 20, 24, 25, 32}[random.IntN(5)]).Masked()
	}
	refusedAny, goodAny := 0, 0
	for range 3000 {
		var peers []Peer
		before := map[string]bool{}
		for i := range 1 + random.IntN(8) {
			p := Peer{Name: fmt.Sprint("p", i), ID: uint64(1 + random.IntN(20)), PublicKey: PublicKey{byte(random.IntN(12))}}
			for range random.IntN(3) {
				p.Prefixes = append(p.Prefixes, prefix())
			}
			peers, before[p.Name] = append(peers, p), random.IntN(3) == 0
		}
		own := PublicKey{1}
		good, refused := admit(peers, func(p *Peer) bool { return before[p.Name] }, own)
		var kept []Peer
		for _, turn := range []bool{true, false} {
			for _, p := range peers {
				if before[p.Name] == turn && p.PublicKey != own && fits(p, kept) {
					kept = append(kept, p)
				}
			}
		}
		slices.SortFunc(kept, func(a, b Peer) int { return int(a.Name[1]) - int(b.Name[1]) })
		if !slices.EqualFunc(good, kept, func(a, b Peer) bool { return a.Name == b.Name }) || len(good)+len(refused) != len(peers) {
			t.Fatalf("of %v (before: %v) %v are admitted, want %v; refused %v", peers, before, good, kept, refused)
		}
		refusedAny, goodAny = refusedAny+len(refused), goodAny+len(good)
	}
	if refusedAny < 1000 || goodAny < 1000 {
		t.Errorf("%d were refused, %d admitted", refusedAny, goodAny)
	}
}

func fits(p Peer, kept []Peer) bool {
	for i, a := range p.Prefixes {
		for _, b := range p.Prefixes[:i] {
			if a != b && a.Overlaps(b) {
				return false
			}
		}
	}
	for _, q := range kept {
		if q.ID == p.ID || q.PublicKey == p.PublicKey && !p.PublicKey.IsZero() {
			return false
		}
		for _, a := range p.Prefixes {
			if slices.ContainsFunc(q.Prefixes, a.Overlaps) {
				return false
			}
		}
	}
	return true
}

func BenchmarkAdmit(b *testing.B) {
	var peers []Peer
	for i := range 5000 {
		peers = append(peers, Peer{
			Name: fmt.Sprint(i), ID: uint64(i + 1), PublicKey: PublicKey{byte(i), byte(i >> 8), 1},
			Prefixes: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 32),
			},
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		if good, _ := admit(peers, func(*Peer) bool { return true }, PublicKey{}); len(good) != len(peers) {
			b.Fatal(len(good))
		}
	}
}
