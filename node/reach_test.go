package node

import (
	"net/netip"
	"strings"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack"
)

// addrPort parses an address and port; "" is the zero AddrPort.
func addrPort(s string) (a netip.AddrPort) {
	if s != "" {
		a = netip.MustParseAddrPort(s)
	}
	return a
}

// TestReach checks which address each client is seen by, on a node of one family and on one of both.
func TestReach(t *testing.T) {
	peers := []netstack.PeerRoute{
		{Name: "n2", PodCIDRs: addresstest.Prefixes(strings.Fields("10.244.2.0/24 fd00:2::/64")...), NodeAddrs: addresstest.Addrs(strings.Fields("192.0.2.2 2001:db8::2")...), Encap: true},
		{Name: "stock", NodeAddrs: addresstest.Addrs(strings.Fields("192.0.2.3")...)},
	}
	four := &netstack.Config{NodeAddrs: addresstest.Addrs(strings.Fields("192.0.2.1")...), Peers: peers}
	both := &netstack.Config{NodeAddrs: addresstest.Addrs(strings.Fields("192.0.2.1 2001:db8::1")...), Peers: peers}
	const kernel, stack = "kernel", ""
	for _, c := range []struct {
		name       string
		node       *netstack.Config
		client, to string
		want       string // the address that the server sees, or another outcome
	}{
		{"a client outside", four, "203.0.113.7:999", "10.244.1.5:80", "203.0.113.7:999"},
		{"a client outside, to a pod of another node", both, "203.0.113.7:999", "10.244.2.5:80", "203.0.113.7:999"},
		{"a client outside, IPv6", both, "[2001:db8:9::7]:999", "[fd00::5]:80", "[2001:db8:9::7]:999"},
		{"a client whose port is of no matter", four, "203.0.113.7:0", "10.244.1.5:80", "203.0.113.7:0"},
		{"nobody in particular", four, "", "10.244.1.5:80", stack},
		{"localhost", four, "127.0.0.1:999", "10.244.1.5:80", "192.0.2.1:0"},
		{"another localhost", four, "127.8.8.8:999", "10.244.1.5:80", "192.0.2.1:0"},
		{"localhost, to a pod of another node", both, "[::1]:999", "[fd00:2::5]:80", "[2001:db8::1]:0"},
		{"localhost, no address of its own", four, "[::1]:999", "[fd00::5]:80", stack},
		{"the node itself", four, "192.0.2.1:999", "10.244.1.5:80", "192.0.2.1:999"},
		{"to this node's host", four, "203.0.113.7:999", "192.0.2.1:80", kernel},
		{"localhost to this node's host", both, "[::1]:999", "[2001:db8::1]:80", kernel},
		{"nobody in particular to this node's host", both, "", "192.0.2.1:80", kernel},
		{"to the host of another node", four, "203.0.113.7:999", "192.0.2.2:80", stack},
		{"to the host of a stock peer", four, "203.0.113.7:999", "192.0.2.3:80", stack},
		{"the node to another's host", four, "192.0.2.1:999", "192.0.2.2:80", stack},
		{"localhost to another's host", four, "[::1]:999", "[2001:db8::2]:80", stack},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := way{kernel: c.want == kernel}
			if !want.kernel {
				want.as = addrPort(c.want)
			}
			if got := reach(clusterOf(c.node), addrPort(c.client), addrPort(c.to)); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestClaimed checks which addresses belong to pods or Services, so that no client outside the cluster can have them.
func TestClaimed(t *testing.T) {
	c := &netstack.Config{
		NodeAddrs:    addresstest.Addrs(strings.Fields("192.0.2.1")...),
		ClusterCIDRs: addresstest.Prefixes(strings.Fields("10.244.0.0/16 fd00:10:244::/56")...), ServiceCIDRs: addresstest.Prefixes(strings.Fields("10.96.0.0/12 fd00:10:96::/112")...),
	}
	for a, want := range map[string]bool{
		"10.244.9.9": true, "10.245.0.1": false, "10.96.0.10": true, "10.112.0.0": false,
		"fd00:10:244::1": true, "fd00:10:244:100::1": false, "fd00:10:96::ffff": true, "fd00:10:96::1:0": false,
		"192.0.2.1": false, "127.0.0.1": false, "203.0.113.7": false,
	} {
		if got := claimed(c, netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: claimed %v, want %v", a, got, want)
		}
	}
}

func TestNodeAddr(t *testing.T) {
	c := &netstack.Config{NodeAddrs: addresstest.Addrs(strings.Fields("192.0.2.1 192.0.2.9 2001:db8::1")...)}
	for like, want := range map[string]string{"0.0.0.0": "192.0.2.1", "10.244.1.5": "192.0.2.1", "::": "2001:db8::1"} {
		if got := nodeAddr(c, netip.MustParseAddr(like)); got != netip.MustParseAddr(want) {
			t.Errorf("like %s: %s, want %s", like, got, want)
		}
	}
	if got := nodeAddr(&netstack.Config{NodeAddrs: addresstest.Addrs(strings.Fields("192.0.2.1")...)}, netip.IPv6Unspecified()); got.IsValid() {
		t.Errorf("a node of one family has %s of the other", got)
	}
}

func TestSameRanges(t *testing.T) {
	for _, c := range []struct {
		before, now string
		anew        bool
	}{
		{"10.1.0.0/24", "10.1.0.0/24", false},
		{"10.1.0.0/24", "", false},
		{"10.1.0.0/24", "10.2.0.0/24", true},
		{"10.1.0.0/24", "10.1.0.0/24 fd00::/64", true},
	} {
		if err := sameRanges(&netstack.Config{PodCIDRs: addresstest.Prefixes(strings.Fields(c.before)...)}, &netstack.Config{PodCIDRs: addresstest.Prefixes(strings.Fields(c.now)...)}); (err != nil) != c.anew {
			t.Errorf("%q, then %q: %v", c.before, c.now, err)
		}
	}
}
