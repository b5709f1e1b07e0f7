package services

import (
	"slices"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

// TestExposed: clients outside may use a load balancer's address. They may not use what an ExternalIP names besides: an
// address of a node, of a pod, or of the service range, and cluster DNS.
func TestExposed(t *testing.T) {
	c := testConfig()
	c.Services.At(0).ExternalIPs = addresstest.Addrs("198.51.100.1", "2001:db8:1b::1", "192.0.2.1", "10.0.0.1", "10.96.0.2", "10.96.0.10", "fd96::a", "0.0.0.0")
	table, _ := NewTable(c)
	want := addresstest.Addrs("198.51.100.1", "2001:db8:1b::1", "198.51.100.3")
	by := table.ExposedServices()
	if len(by) != 2 || by[0].Service != "d/dual" || by[1].Service != "d/local" || !slices.Equal(slices.Concat(by[0].Addrs, by[1].Addrs), want) {
		t.Errorf("got %v, want %v", by, want)
	}
	for _, a := range want {
		if !table.Exposed(packet.AddrFrom(a)) {
			t.Errorf("%s is not exposed", a)
		}
	}
	for _, a := range addresstest.Addrs("192.0.2.1", "192.0.2.2", "10.0.0.1", "10.96.0.1", "10.96.0.2", "10.96.0.10", "fd96::a", "203.0.113.1", "0.0.0.0", "::") {
		if table.Exposed(packet.AddrFrom(a)) {
			t.Errorf("%s is exposed", a)
		}
	}
	c.Services = roll.List[*Service]{}
	if next, _ := table.Update(c); len(next.ExposedServices()) != 0 {
		t.Errorf("without Services %v", next.ExposedServices())
	}
}
