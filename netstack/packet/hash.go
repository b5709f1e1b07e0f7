package packet

import "math/bits"

// Constants without a pattern: fractional digits of pi, as Blowfish uses them.
const (
	hashK0 = 0x243f6a8885a308d3
	hashK1 = 0x13198a2e03707345
	hashK2 = 0xa4093822299f31d1
	hashK3 = 0x082efa98ec4e6c89
	hashK4 = 0x452821e638d01377
)

// Hash mixes every field of t with seed. Tables use a secret seed; rendezvous hashing uses the candidate as seed. Hash
// is not cryptographic. Its value for a given tuple and seed may be kept by several processes of one machine.
func (t *Tuple) Hash(seed uint64) uint64 {
	a := mix(le.Uint64(t.Src[:8])^hashK0^seed, le.Uint64(t.Src[8:])^hashK1)
	b := mix(le.Uint64(t.Dst[:8])^hashK2, le.Uint64(t.Dst[8:])^hashK3^seed)
	ports := uint64(t.SrcPort)<<48 | uint64(t.DstPort)<<32 | uint64(t.Space)
	return mix(a^bits.RotateLeft64(b, 32)^hashK0, mix(ports^hashK2^seed, uint64(t.Proto)^hashK4)^b)
}

// mix multiplies a and b and folds the 128-bit product to 64 bits.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
