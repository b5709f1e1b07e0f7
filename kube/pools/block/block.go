// Package block reads the addresses of AddressPools, and finds the pool with an address.
package block

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"tapestry.dev/tapestry/addressing"
)

// Block is a row of addresses of one family, both ends included.
type Block struct{ First, Last netip.Addr }

// Parse reads a prefix, a range or an address.
func Parse(text string) (Block, error) {
	b, ok := read(strings.TrimSpace(text))
	switch {
	case !ok:
		return Block{}, fmt.Errorf("%q is no addresses: expected a prefix like 192.0.2.0/28, a range like 192.0.2.10-192.0.2.19, or an address", text)
	case b.Last.Less(b.First):
		return Block{}, fmt.Errorf("%q ends before it begins: exchange the two addresses", text)
	}
	for _, a := range []netip.Addr{b.First, b.Last} {
		if why := addressing.Special(a); why != "" {
			return Block{}, fmt.Errorf("%q holds %s, which is %s: expected addresses that clients can reach", text, a, why)
		}
	}
	return b, nil
}

func read(text string) (Block, bool) {
	if from, to, isRange := strings.Cut(text, "-"); isRange {
		a, err := netip.ParseAddr(strings.TrimSpace(from))
		b, err2 := netip.ParseAddr(strings.TrimSpace(to))
		a, b = a.Unmap(), b.Unmap()
		return Block{a, b}, err == nil && err2 == nil && a.Is4() == b.Is4() && a.Zone() == "" && b.Zone() == ""
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return Block{a.Unmap(), a.Unmap()}, a.Zone() == ""
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return Block{}, false
	}
	p = p.Masked()
	return Block{p.Addr(), LastOf(p)}, true
}

// LastOf returns the last address of a prefix.
func LastOf(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for i := p.Bits(); i < len(bytes)*8; i++ {
		bytes[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

// Contains reports whether an address is in the block.
func (b Block) Contains(a netip.Addr) bool {
	return a.Is4() == b.First.Is4() && !a.Less(b.First) && !b.Last.Less(a)
}

// Overlaps reports whether two blocks have an address both.
func (b Block) Overlaps(c Block) bool {
	return b.First.Is4() == c.First.Is4() && !b.Last.Less(c.First) && !c.Last.Less(b.First)
}

// Most is the largest number that every reader of JSON understands.
const Most = 1<<53 - 1

// Size returns the number of addresses, at most Most.
func (b Block) Size() int64 {
	first, last := b.First.As16(), b.Last.As16()
	high := binary.BigEndian.Uint64(last[:8]) - binary.BigEndian.Uint64(first[:8])
	low := binary.BigEndian.Uint64(last[8:]) - binary.BigEndian.Uint64(first[8:])
	if binary.BigEndian.Uint64(last[8:]) < binary.BigEndian.Uint64(first[8:]) {
		high--
	}
	if high > 0 || low >= Most || low == math.MaxUint64 {
		return Most
	}
	return int64(low) + 1
}

// Buggies returns how many addresses of the block are Buggy.
func (b Block) Buggies() int64 {
	if !b.First.Is4() {
		return 0
	}
	until := func(a netip.Addr) int64 { // how many there are from 0.0.0.0 to a
		n := int64(binary.BigEndian.Uint32(a.AsSlice()))
		return 2*(n/256) + 1 + n%256/255
	}
	n := until(b.Last) - until(b.First)
	if Buggy(b.First) {
		n++
	}
	return n
}

// Buggy reports whether some old devices take an address for one of a network (RFC 4632 made it an ordinary one).
func Buggy(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	last := a.As4()[3]
	return last == 0 || last == 255
}
