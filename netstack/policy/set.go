package policy

import "math/bits"

// set is a set of the numbers below a bound. Sets with one bound have the same length, and a word at least.
type set []uint64

// newSet returns an empty set of numbers below n.
func newSet(n int) set { return make(set, n>>6+1) }

func (s set) add(n int)      { s[n>>6] |= 1 << (n & 63) }
func (s set) has(n int) bool { return s[n>>6]>>(n&63)&1 != 0 }
func (s set) toggle(n int)   { s[n>>6] ^= 1 << (n & 63) }

// first returns the first number that is in both s and t, and in one of the others at least, or -1. All have one bound.
func first(s, t set, others [3]set) int {
	n := len(s)
	t, a, b, c := t[:n], others[0][:n], others[1][:n], others[2][:n]
	for i, w := range s {
		if w &= t[i] & (a[i] | b[i] | c[i]); w != 0 {
			return i<<6 + bits.TrailingZeros64(w)
		}
	}
	return -1
}
