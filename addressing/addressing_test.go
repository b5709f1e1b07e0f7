package addressing

import (
	"net/netip"
	"testing"
)

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		cidr, stack, host, pod string
		capacity               int
	}{
		{"10.244.1.0/24", "10.244.1.1", "10.244.1.2", "10.244.1.3", 252},
		{"10.244.1.77/24", "10.244.1.1", "10.244.1.2", "10.244.1.3", 252}, // host bits are ignored
		{"10.244.1.0/29", "10.244.1.1", "10.244.1.2", "10.244.1.3", 4},
		{"10.244.1.0/30", "10.244.1.1", "10.244.1.2", "10.244.1.3", 0},
		{"10.0.0.0/1", "0.0.0.1", "0.0.0.2", "0.0.0.3", maxCapacity},
		{"fd00:10:244:1::/64", "fd00:10:244:1::1", "fd00:10:244:1::2", "fd00:10:244:1::3", maxCapacity},
		{"fd00::/126", "fd00::1", "fd00::2", "fd00::3", 1},
	} {
		p := netip.MustParsePrefix(c.cidr)
		if g, h, f := Stack(p).String(), Host(p).String(), FirstPod(p).String(); g != c.stack || h != c.host || f != c.pod {
			t.Errorf("%s: stack %s, host %s, first pod %s; want %s, %s, %s", p, g, h, f, c.stack, c.host, c.pod)
		}
		if got := Capacity(p); got != c.capacity {
			t.Errorf("Capacity(%s) = %d, want %d", p, got, c.capacity)
		}
	}
}

// TestReserved counts: Capacity is the number of addresses in a range that are not reserved.
func TestReserved(t *testing.T) {
	for _, text := range []string{"10.244.1.0/24", "10.244.1.0/28", "10.244.1.0/29", "10.244.1.0/30", "10.244.1.0/31", "fd00::/120", "fd00::/126"} {
		p, free := netip.MustParsePrefix(text), 0
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			if !Reserved(p, a) {
				free++
			}
		}
		if free != Capacity(p) {
			t.Errorf("%s: %d addresses are not reserved, but Capacity is %d", p, free, Capacity(p))
		}
		if first := FirstPod(p); p.Contains(first) && Capacity(p) > 0 && Reserved(p, first) {
			t.Errorf("%s: the first pod's address %s is reserved", p, first)
		}
	}
}

func TestOverhead(t *testing.T) {
	for over6, want := range map[bool][2]int{false: {60, 20}, true: {80, 40}} {
		if got := [2]int{Tunnel(over6), Encap(over6)}; got != want {
			t.Errorf("over IPv6 %v: tunnel and encapsulation take %v, want %v", over6, got, want)
		}
	}
}

func TestNodeID(t *testing.T) {
	for n, want := range map[Node]uint64{
		// These IDs are in the flow memory of running nodes, and must not change.
		{Name: "a"}: 0xaf63dc4c8601ec8c,
		{Name: ""}:  0xcbf29ce484222325,
	} {
		if got := n.ID(); got != want {
			t.Errorf("%+v has the ID %#x, want %#x", n, got, want)
		}
	}
	seen := map[uint64]Node{}
	for _, n := range []Node{{Name: "n1"}, {Name: "n2"}, {"east", "n1"}, {"west", "n1"}, {"east", "n2"}} {
		if other, taken := seen[n.ID()]; taken {
			t.Errorf("%+v and %+v have the same ID", n, other)
		}
		seen[n.ID()] = n
	}
}
