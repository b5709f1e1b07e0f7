package node

import (
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/packet"
)

// TestAsks: it is noted who connects to the ports of Ingress, at any address of the host, before anybody listens there.
func TestAsks(t *testing.T) {
	for _, c := range []struct {
		ports []uint16
		to    string
		want  bool
	}{
		{[]uint16{80, 443}, "192.0.2.1:80", true},
		{[]uint16{80, 443}, "192.0.2.1:443", true},
		{[]uint16{80, 443}, "[2001:db8::1]:443", true},
		{[]uint16{80, 443}, "172.17.0.1:443", true}, // its Node does not name this one
		{[]uint16{80, 443}, "10.244.1.2:80", true},  // the host TAP's
		{[]uint16{80, 443}, "192.0.2.1:6443", false},
		{[]uint16{80, 443}, "192.0.2.2:80", false},
		{[]uint16{}, "192.0.2.1:80", false},
		{nil, "192.0.2.1:6443", true},
		{nil, "192.0.2.2:80", false},
	} {
		n := &Node{held: Held{IngressPorts: c.ports}}
		n.config.Store(&Config{Netstack: netstack.Config{
			PodCIDRs: addresstest.Prefixes("10.244.1.0/24"), NodeAddrs: addresstest.Addrs("192.0.2.1", "2001:db8::1"),
		}})
		host := addresstest.Addrs("192.0.2.1", "172.17.0.1")
		n.hostAddrs.Store(&host)
		if got := n.asks(packet.EndpointFrom(netip.MustParseAddrPort(c.to))); got != c.want {
			t.Errorf("with ports %v, %s: got %v", c.ports, c.to, got)
		}
	}
}
