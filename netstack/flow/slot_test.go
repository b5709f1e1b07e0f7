package flow

import (
	"math/rand/v2"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// Translates agrees with comparing the original tuple with the reversed reply.
func TestTranslates(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	tuple := func() packet.Tuple { // few values, so that many tuples are equal
		return packet.Tuple{
			Src: packet.Addr{15: byte(r.IntN(2))}, Dst: packet.Addr{15: byte(r.IntN(2))},
			SrcPort: uint16(r.IntN(2)), DstPort: uint16(r.IntN(2)), Space: r.Uint32N(2), Proto: packet.TCP,
		}
	}
	seen := map[bool]int{}
	for range 1000 {
		orig, reply := tuple(), tuple()
		to := reply.Reverse()
		to.Space = orig.Space
		want := to != orig
		if got := Translates(&orig, &reply); got != want {
			t.Fatalf("%v, answered by %v: %v, want %v", orig, reply, got, want)
		}
		seen[want]++
	}
	if seen[true] == 0 || seen[false] == 0 {
		t.Fatalf("the tuples never led to one of the two answers: %v", seen)
	}
}
