package translate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestRangesTwin compares overlapping with a linear search.
func TestRangesTwin(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	prefix := func() netip.Prefix {
		if random.IntN(4) == 0 {
			return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(random.IntN(64))}), 120+random.IntN(9)).Masked()
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(256))}), 22+random.IntN(11)).Masked()
	}
	overlaps := 0
	for range 300 {
		var r ranges
		for range 20 {
			p := prefix()
			var owner string
			var other netip.Prefix
			for _, x := range r {
				if x.Overlaps(p) && (owner == "" || x.owner < owner) {
					owner, other = x.owner, x.Prefix
				}
			}
			gotOwner, gotOther := r.overlapping(p)
			if gotOwner != owner || gotOther != other {
				t.Fatalf("%v among %v: got %v of %q, want %v of %q", p, r, gotOther, gotOwner, other, owner)
			}
			if owner == "" {
				r.add(p, string(rune('a'+random.IntN(26))))
			} else {
				overlaps++
			}
		}
	}
	if overlaps < 1000 {
		t.Errorf("only %d overlaps", overlaps)
	}
}

func TestOtherEndpoints(t *testing.T) {
	a := func(texts ...string) (list []netip.Addr) {
		for _, s := range texts {
			list = append(list, netip.MustParseAddr(s))
		}
		return list
	}
	both := a("192.0.2.1", "2001:db8::1")
	pods := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("2001:db8:244::/48")}
	for _, c := range []struct {
		name     string
		own      []netip.Addr
		endpoint string
		addrs    []netip.Addr
		stock    bool
		want     string
	}{
		{"one address", both, "192.0.2.2:5", a("192.0.2.2"), false, "[]"},
		{"both families", both, "192.0.2.2:5", a("192.0.2.2", "2001:db8::2"), false, "[[2001:db8::2]:5]"},
		{"IPv6 first", both, "[2001:db8::2]:5", a("2001:db8::2", "192.0.2.2"), false, "[192.0.2.2:5]"},
		{"this node has IPv4 alone", both[:1], "192.0.2.2:5", a("192.0.2.2", "2001:db8::2", "192.0.2.3"), false, "[192.0.2.3:5]"},
		{"many", both, "192.0.2.2:5", a("192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "2001:db8::2"), false, "[[2001:db8::2]:5 192.0.2.3:5 192.0.2.4:5 192.0.2.5:5]"},
		{"announced elsewhere", both, "198.51.100.9:5", a("192.0.2.2", "2001:db8::2"), false, "[[2001:db8::2]:5 192.0.2.2:5]"},
		{"in a range of pods", both, "192.0.2.2:5", a("192.0.2.2", "10.244.3.1", "2001:db8:244::1"), false, "[]"},
		{"stock", both, "192.0.2.2:5", a("192.0.2.2", "2001:db8::2"), true, "[]"},
		{"unknown", nil, "192.0.2.2:5", a("192.0.2.2", "2001:db8::2"), false, "[]"},
	} {
		n := node{endpoint: netip.MustParseAddrPort(c.endpoint), addrs: c.addrs, stock: c.stock}
		if got := fmt.Sprint(n.otherEndpoints(c.own, pods)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if got := (&node{addrs: both}).otherEndpoints(both, nil); got != nil {
		t.Errorf("a node without an endpoint has others: %v", got)
	}
}
