package law

import "math/bits"

// Set is a set of the numbers of a Law's rules. Those of one Law have the same length, and a word at least.
type Set []uint64

func newSet(n int) Set { return make(Set, n>>6+1) }

// Add adds a number.
func (s Set) Add(n int) { s[n>>6] |= 1 << (n & 63) }

func (s Set) has(n int) bool { return s[n>>6]>>(n&63)&1 != 0 }
func (s Set) toggle(n int)   { s[n>>6] ^= 1 << (n & 63) }

// first returns the first number that is in both s and t, and in one of the others at least, or -1. All have one bound.
func first(s, t Set, others [3]Set) int {
	n := len(s)
	t, a, b, c := t[:n], others[0][:n], others[1][:n], others[2][:n]
	for i, w := range s {
		if w &= t[i] & (a[i] | b[i] | c[i]); w != 0 {
			return i<<6 + bits.TrailingZeros64(w)
		}
	}
	return -1
}
