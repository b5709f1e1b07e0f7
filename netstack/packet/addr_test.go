package packet

import (
	"net/netip"
	"testing"
)

// Is4 agrees with netip, also when one bit is different.
func TestIs4(t *testing.T) {
	check := func(a Addr) {
		if got, want := a.Is4(), netip.AddrFrom16(a).Is4In6(); got != want {
			t.Errorf("%v: %v, want %v", netip.AddrFrom16(a), got, want)
		}
	}
	for _, s := range []string{"0.0.0.0", "10.244.1.10", "255.255.255.255", "::", "::1", "fd00::ffff:0:1"} {
		a := AddrFrom(netip.MustParseAddr(s))
		check(a)
		for bit := range 128 {
			b := a
			b[bit/8] ^= 1 << (bit % 8)
			check(b)
		}
	}
}
