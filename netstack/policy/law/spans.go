package law

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
)

// place is a number of 128 bits: a port, or an address. IPv4 addresses are those of packet.Addr, within ::ffff:0:0/96.
type place struct{ hi, lo uint64 }

func placeOf(a *packet.Addr) place {
	return place{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])}
}

func (p place) less(q place) bool { return p.hi < q.hi || p.hi == q.hi && p.lo < q.lo }

func (p place) compare(q place) int {
	if p.hi != q.hi {
		return cmp.Compare(p.hi, q.hi)
	}
	return cmp.Compare(p.lo, q.lo)
}

// after returns the next place; ok is false for the last of all.
func (p place) after() (next place, ok bool) {
	if next = (place{p.hi, p.lo + 1}); next.lo == 0 {
		next.hi++
	}
	return next, next != place{}
}

// span is a range of places, both ends included.
type span struct{ first, last place }

var ipv4 = netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), packet.Before4)

// spanOf returns the span of a range.
func spanOf(p netip.Prefix) span {
	a := packet.Addr(p.Masked().Addr().As16())
	n := p.Bits()
	if p.Addr().Is4() {
		n += packet.Before4
	}
	s := span{placeOf(&a), placeOf(&a)}
	if n < 64 {
		s.last.hi |= ^uint64(0) >> n
		s.last.lo = ^uint64(0)
	} else {
		s.last.lo |= ^uint64(0) >> (n - 64) // nothing for 128
	}
	return s
}

// without returns the parts of a range that none of the exceptions covers. A range of IPv6 has no addresses of IPv4,
// and an exception neither.
func without(p netip.Prefix, except []netip.Prefix) (list []span) {
	holes := make([]span, 0, len(except)+1)
	for _, e := range except {
		if e.Addr().Is4() == p.Addr().Is4() {
			holes = append(holes, spanOf(e))
		}
	}
	if !p.Addr().Is4() {
		holes = append(holes, spanOf(ipv4))
	}
	slices.SortFunc(holes, func(a, b span) int { return a.first.compare(b.first) })
	rest := spanOf(p)
	for _, h := range holes {
		if h.last.less(rest.first) {
			continue
		}
		if rest.last.less(h.first) {
			break
		}
		if rest.first.less(h.first) {
			list = append(list, span{rest.first, before(h.first)})
		}
		next, ok := h.last.after()
		if !ok || rest.last.less(next) {
			return list
		}
		rest.first = next
	}
	return append(list, rest)
}

func before(p place) place {
	if p.lo == 0 {
		return place{p.hi - 1, ^uint64(0)}
	}
	return place{p.hi, p.lo - 1}
}
