package nodeport

import (
	"net/netip"
	"slices"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

// TestLimits: only node ports are limited, and those for clients on the node alone stay on loopback.
func TestLimits(t *testing.T) {
	config := services.Config{
		Node: "a", NodeAddrs: addresstest.Addrs("192.0.2.1", "2001:db8::1"), OwnAddrs: addresstest.Addrs("192.0.2.1", "2001:db8::1"),
		HostPorts: []services.HostPort{{Pod: "d/p", ID: "u", Addr: netip.IPv4Unspecified(), Port: 8443, Protocol: packet.TCP, To: netip.MustParseAddrPort("10.0.0.1:443")}},
		Services: roll.From([]*services.Service{{
			Namespace: "d", Name: "far", ClusterIPs: addresstest.Addrs("10.96.0.1", "fd96::1"), ExternalLocal: true,
			Ports: []services.Port{{Protocol: packet.TCP, Port: 80, NodePort: 30081}},
			Endpoints: []services.Endpoint{{Addr: netip.MustParseAddr("10.0.1.1"), Node: "b", Ready: true, Serving: true,
				Ports: []services.EndpointPort{{Protocol: packet.TCP, Port: 80}}}},
		}, {
			Namespace: "d", Name: "web", ClusterIPs: addresstest.Addrs("10.96.0.2", "fd96::2"), ExternalIPs: addresstest.Addrs("192.0.2.1"),
			Ports: []services.Port{{Protocol: packet.TCP, Port: 80, NodePort: 30080}},
			Endpoints: []services.Endpoint{
				{Addr: netip.MustParseAddr("10.0.0.1"), Node: "a", Ready: true, Serving: true, Ports: []services.EndpointPort{{Protocol: packet.TCP, Port: 80}}},
				{Addr: netip.MustParseAddr("fd00::1"), Node: "a", Ready: true, Serving: true, Ports: []services.EndpointPort{{Protocol: packet.TCP, Port: 80}}},
			},
		}}),
	}
	table, _ := services.NewTable(config)
	for _, tt := range []struct {
		limits Limits
		want   []string
	}{
		{nil, []string{"0.0.0.0:30080", "0.0.0.0:8443", "127.0.0.1:30081", "192.0.2.1:80", "[::]:30080"}},
		{Limits{services.IPv4: addresstest.Addrs("10.9.0.1", "127.0.0.1")}, []string{"0.0.0.0:8443", "10.9.0.1:30080", "127.0.0.1:30080", "127.0.0.1:30081", "192.0.2.1:80", "[::]:30080"}},
		{Limits{services.IPv4: addresstest.Addrs("10.9.0.1"), services.IPv6: addresstest.Addrs("2001:db8::1")}, []string{"0.0.0.0:8443", "10.9.0.1:30080", "192.0.2.1:80", "[2001:db8::1]:30080"}},
		{Limits{services.IPv4: nil, services.IPv6: nil}, []string{"0.0.0.0:8443", "192.0.2.1:80"}},
	} {
		var got []string
		for _, s := range PortsAt(table, tt.limits) {
			got = append(got, netip.AddrPortFrom(s.Addr, s.Port).String())
		}
		if slices.Sort(got); !slices.Equal(got, tt.want) {
			t.Errorf("%v:\ngot  %q\nwant %q", tt.limits, got, tt.want)
		}
	}
}

// What is where node ports are listens at all addresses of a family without a limit.
func TestLimitsAddrs(t *testing.T) {
	for _, tt := range []struct {
		limits Limits
		want   []netip.Addr
	}{
		{nil, nil},
		{Limits{}, nil},
		{Limits{services.IPv4: addresstest.Addrs("10.9.0.1", "127.0.0.1")}, addresstest.Addrs("10.9.0.1", "127.0.0.1", "::")},
		{Limits{services.IPv4: nil, services.IPv6: addresstest.Addrs("2001:db8::1")}, addresstest.Addrs("2001:db8::1")},
		{Limits{services.IPv4: nil, services.IPv6: nil}, []netip.Addr{}},
	} {
		if got := tt.limits.Addrs(); !slices.Equal(got, tt.want) || (got == nil) != (tt.want == nil) {
			t.Errorf("%v: %v, want %v", tt.limits, got, tt.want)
		}
	}
}
