package pools

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"tapestry.dev/tapestry/addressing"
)

// block is a row of addresses of one family, both ends included.
type block struct{ first, last netip.Addr }

// parseBlock reads a prefix, a range or an address.
func parseBlock(text string) (block, error) {
	b, ok := readBlock(strings.TrimSpace(text))
	switch {
	case !ok:
		return block{}, fmt.Errorf("%q is no addresses: expected a prefix like 192.0.2.0/28, a range like 192.0.2.10-192.0.2.19, or an address", text)
	case b.last.Less(b.first):
		return block{}, fmt.Errorf("%q ends before it begins: exchange the two addresses", text)
	}
	for _, a := range []netip.Addr{b.first, b.last} {
		if why := addressing.Special(a); why != "" {
			return block{}, fmt.Errorf("%q holds %s, which is %s: expected addresses that clients can reach", text, a, why)
		}
	}
	return b, nil
}

func readBlock(text string) (block, bool) {
	if from, to, isRange := strings.Cut(text, "-"); isRange {
		a, err := netip.ParseAddr(strings.TrimSpace(from))
		b, err2 := netip.ParseAddr(strings.TrimSpace(to))
		a, b = a.Unmap(), b.Unmap()
		return block{a, b}, err == nil && err2 == nil && a.Is4() == b.Is4() && a.Zone() == "" && b.Zone() == ""
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return block{a.Unmap(), a.Unmap()}, a.Zone() == ""
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return block{}, false
	}
	p = p.Masked()
	return block{p.Addr(), lastOf(p)}, true
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for i := p.Bits(); i < len(bytes)*8; i++ {
		bytes[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

func (b block) contains(a netip.Addr) bool {
	return a.Is4() == b.first.Is4() && !a.Less(b.first) && !b.last.Less(a)
}

func (b block) overlaps(c block) bool {
	return b.first.Is4() == c.first.Is4() && !b.last.Less(c.first) && !c.last.Less(b.first)
}

// most is the largest number that every reader of JSON understands.
const most = 1<<53 - 1

// size returns the number of addresses, at most most.
func (b block) size() int64 {
	first, last := b.first.As16(), b.last.As16()
	high := binary.BigEndian.Uint64(last[:8]) - binary.BigEndian.Uint64(first[:8])
	low := binary.BigEndian.Uint64(last[8:]) - binary.BigEndian.Uint64(first[8:])
	if binary.BigEndian.Uint64(last[8:]) < binary.BigEndian.Uint64(first[8:]) {
		high--
	}
	if high > 0 || low >= most || low == math.MaxUint64 {
		return most
	}
	return int64(low) + 1
}

// buggy reports whether some old devices take an address for one of a network (RFC 4632 made it an ordinary one).
func buggy(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	last := a.As4()[3]
	return last == 0 || last == 255
}
