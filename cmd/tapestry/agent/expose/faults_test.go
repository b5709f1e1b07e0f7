package expose

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/cmd/tapestry/agent/announcing"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/services"
)

// A node is in the third tier where it routes ranges into its host TAP and its announcer of ARP and NDP works.
func TestTier(t *testing.T) {
	for _, c := range []struct {
		ranges  string
		working []announcing.Kind
		want    localapi.Tier
	}{
		{"", nil, localapi.HostSockets},
		{"", []announcing.Kind{announcing.BGP, announcing.L2}, localapi.HostSockets}, // it goes no further
		{"203.0.113.0/24", nil, localapi.HostTAP},
		{"203.0.113.0/24", []announcing.Kind{announcing.BGP}, localapi.HostTAP},
		{"203.0.113.0/24", []announcing.Kind{announcing.L2}, localapi.Announced},
		{"203.0.113.0/24 2001:db8:1b::/64", []announcing.Kind{announcing.BGP, announcing.L2}, localapi.Announced},
	} {
		ranges := addresstest.Prefixes(strings.Fields(c.ranges)...)
		got := tierOf(ranges, c.working)
		if got.Tier != c.want || !slices.Equal(got.Ranges, ranges) || len(got.Announcers) != len(c.working) {
			t.Errorf("%q with %q: %+v, want %s", c.ranges, c.working, got, c.want)
		}
	}
}

func TestFaults(t *testing.T) {
	into, out, own := tap.Way{Link: "tapestry0"}, tap.Way{Link: "eth0"}, tap.Way{Link: "lo", Own: true}
	web := services.Exposed{Service: "d/web", Addrs: addresstest.Addrs("203.0.113.1", "2001:db8:1b::1")}
	out46 := []gateway{{addr: web.Addrs[0], of: "shop"}, {addr: web.Addrs[1], of: "shop"}}
	for name, c := range map[string]struct {
		ranges       string
		routed       string // after those of load balancers
		exposed      []services.Exposed
		egress       []gateway
		way4, way6   tap.Way
		off4, off6   []string
		object, want []string
	}{
		"nothing is wrong":         {ranges: "203.0.113.0/24 2001:db8:1b::/64", exposed: []services.Exposed{web}, way4: into, way6: into},
		"not this tier":            {exposed: []services.Exposed{web}, way4: out, way6: out, off4: []string{"x"}},
		"nothing is exposed":       {ranges: "203.0.113.0/24", off4: []string{"x"}, off6: []string{"y"}},
		"a family that nobody has": {ranges: "203.0.113.0/24", exposed: []services.Exposed{{Service: "d/web", Addrs: web.Addrs[:1]}}, way4: into, off6: []string{"y"}},
		"does not forward": {ranges: "203.0.113.0/24 2001:db8:1b::/64", exposed: []services.Exposed{web}, way4: into, way6: into,
			off4: []string{"net.ipv4.conf.eth0.forwarding"}, off6: []string{"net.ipv6.conf.all.forwarding"},
			object: []string{"Node n1", "Node n1"}, want: []string{"(net.ipv4.conf.eth0.forwarding is 0): set net.ipv4.ip_forward=1", "IPv6 by this node, since its kernel does not forward (net.ipv6.conf.all.forwarding is 0): set net.ipv6.conf.all.forwarding=1"}},
		"another range": {ranges: "198.51.100.0/24", exposed: []services.Exposed{web}, way4: out, way6: tap.Way{},
			object: []string{"Service d/web"}, want: []string{"203.0.113.1 by node n1, which does not route it into its host TAP: give 'tapestry host-tap' its range with --load-balancer-cidr"}},
		"the route is gone": {ranges: "203.0.113.0/24 2001:db8:1b::/64", exposed: []services.Exposed{web}, way4: into, way6: tap.Way{},
			object: []string{"Service d/web"}, want: []string{"2001:db8:1b::1 by node n1, whose route through tapestry0 is gone"}},
		"routed, does not forward": {routed: "198.51.100.0/24 2001:db8:ffff::/64", off4: []string{"x"}, off6: []string{"y"},
			object: []string{"Node n1", "Node n1"}, want: []string{"pods of this node do not reach the ranges of IPv4 that are not masqueraded, since its kernel does not forward (x is 0): set net.ipv4.ip_forward=1", "ranges of IPv6 that are"}},
		"routed, one family": {routed: "198.51.100.0/24", off6: []string{"y"}},
		"both, do not forward": {routed: "198.51.100.0/24", ranges: "203.0.113.0/24", exposed: []services.Exposed{{Service: "d/web", Addrs: web.Addrs[:1]}}, way4: into, off4: []string{"x"},
			object: []string{"Node n1", "Node n1"}, want: []string{"clients outside do not reach", "pods of this node do not reach"}},
		"routed back": {routed: "203.0.113.1/32", way4: into, object: []string{"Node n1"}, want: []string{"routes 203.0.113.1 back into tapestry0; leave out"}},
		"the host has the address": {ranges: "203.0.113.0/24 2001:db8:1b::/64", exposed: []services.Exposed{web}, way4: own, way6: into, off4: []string{"z"},
			object: []string{"Node n1", "Service d/web"}, want: []string{"z is 0", "takes it for one of its own"}},
		"a gateway":                       {ranges: "203.0.113.0/24 2001:db8:1b::/64", egress: out46, way4: into, way6: into},
		"a gateway that does not forward": {ranges: "203.0.113.0/24 2001:db8:1b::/64", egress: out46, way4: into, way6: into, off4: []string{"x"}, object: []string{"Node n1"}, want: []string{"pods do not reach anything outside from egress addresses of IPv4 by this node, which can be their gateway, since its kernel does not forward (x is 0): set net.ipv4.ip_forward=1"}},
		"a gateway without the range":     {egress: out46[:1], way4: out, object: []string{"EgressAddress shop"}, want: []string{"answers from outside do not reach its address 203.0.113.1 by node n1, which does not route it into its host TAP: give 'tapestry host-tap' its range"}},
		"a gateway that has it itself":    {ranges: "203.0.113.0/24 2001:db8:1b::/64", egress: out46, way4: own, way6: into, object: []string{"EgressAddress shop"}, want: []string{"by node n1, which takes it for one of its own"}},
		"a gateway without a host TAP":    {egress: []gateway{{out46[0].addr, "shop", true}}, way4: out, off4: []string{"x"}, object: []string{"EgressAddress shop"}, want: []string{"has no host TAP with an address of the family: run 'tapestry host-tap'"}},
	} {
		f := facts{node: "n1", exposed: c.exposed, egress: c.egress, off4: c.off4, off6: c.off6, ranges: addresstest.Prefixes(strings.Fields(c.ranges)...), routed: addresstest.Prefixes(strings.Fields(c.routed)...),
			ways: map[netip.Addr]tap.Way{web.Addrs[0]: c.way4, web.Addrs[1]: c.way6}}
		var objects []string
		got := faults(&f)
		for i, p := range got {
			objects = append(objects, p.Object.String())
			if i < len(c.want) && !strings.Contains(p.Message, c.want[i]) {
				t.Errorf("%s: %q, want it to say %q", name, p.Message, c.want[i])
			}
		}
		if !slices.Equal(objects, c.object) {
			t.Errorf("%s: problems of %v, want of %v: %v", name, objects, c.object, got)
		}
	}
}
