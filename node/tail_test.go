package node

import (
	"net"
	"net/netip"
	"strings"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

// Host sockets are never connected to some endpoints, whatever an EndpointSlice says.
func TestTail(t *testing.T) {
	c := &netstack.Config{
		PodCIDRs:     addresstest.Prefixes("10.244.1.0/24", "fd00:1::/64"),
		NodeAddrs:    addresstest.Addrs("192.0.2.1", "2001:db8::1"),
		ServiceCIDRs: addresstest.Prefixes("10.96.0.0/16", "fd00:96::/112"),
		ClusterCIDRs: addresstest.Prefixes("10.244.0.0/16", "fd00:1::/48"),
		Peers: []netstack.PeerRoute{
			{Name: "n2", PodCIDRs: addresstest.Prefixes("10.244.2.0/24"), NodeAddrs: addresstest.Addrs("192.0.2.2"), Encap: true},
			{Name: "stock", NodeAddrs: addresstest.Addrs("192.0.2.3"), PodCIDRs: addresstest.Prefixes("10.244.3.0/24")},
		},
	}
	host := addresstest.Addrs("192.0.2.1", "172.17.0.1")
	table, problems := services.NewTable(services.Config{
		Node: "n1", NodeAddrs: addresstest.Addrs("192.0.2.1", "192.0.2.2"),
		Services: roll.From([]*services.Service{{
			Namespace: "default", Name: "web", ClusterIPs: addresstest.Addrs("10.96.0.80"),
			// A load balancer outside, and one that runs on a node.
			ExternalIPs: addresstest.Addrs("203.0.113.80", "192.0.2.2"),
			SocketIPs:   addresstest.Addrs("192.0.2.1"),
			Ports:       []services.Port{{Name: "t", Protocol: packet.TCP, Port: 80, NodePort: 30080}, {Name: "u", Protocol: packet.UDP, Port: 80, NodePort: 30053}},
		}}),
	})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	const range_, port, balancer = "service range", "node port", "address of a Service"
	const away = "outside of the cluster"
	for _, test := range []struct{ network, to, want string }{
		{"tcp", "10.244.1.5:30080", ""},
		{"tcp", "10.244.2.5:30080", ""},
		{"tcp", "203.0.113.9:30080", away},
		{"udp", "203.0.113.9:53", away},
		{"tcp", "[2001:db8::9]:80", away},
		{"tcp", "192.0.2.1:8080", ""}, // a pod on the node's network
		{"tcp", "192.0.2.2:8080", ""},
		{"tcp", "10.96.0.80:80", range_},
		{"udp", "10.96.0.10:53", range_}, // DNS
		{"tcp", "[fd00:96::1]:443", range_},
		{"tcp", "192.0.2.1:30080", port},
		{"udp", "192.0.2.1:30080", ""},
		{"udp", "192.0.2.1:30053", port},
		{"tcp", "192.0.2.1:30053", ""},
		{"tcp", "172.17.0.1:30080", port}, // an address that the Node does not name
		{"tcp", "10.244.1.2:30080", port}, // the address of the host TAP
		{"tcp", "10.244.1.1:30080", ""},   // the stack address, where nobody listens
		{"tcp", "203.0.113.80:80", balancer},
		{"udp", "203.0.113.80:80", balancer},
		{"tcp", "203.0.113.80:443", away},
		{"tcp", "192.0.2.2:80", balancer}, // another node listens there
		{"tcp", "192.0.2.1:80", balancer}, // this node listens there
		{"udp", "192.0.2.1:80", balancer},
		{"tcp", "192.0.2.3:80", ""},
		{"tcp", "10.244.2.2:30080", port}, // the host TAP of another node
		{"udp", "10.244.2.2:30053", port},
		{"tcp", "10.244.2.2:8080", ""},
		{"tcp", "10.244.3.2:30080", ""}, // the same of a node without an agent
		{"tcp", "192.0.2.2:30080", port},
		{"tcp", "192.0.2.3:30080", ""}, // a node without an agent
		{"tcp", "[2001:db8::1]:30080", ""},
	} {
		got := tail(clusterOf(c), host, table, test.network, netip.MustParseAddrPort(test.to))
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%s %s: got %q, want %q", test.network, test.to, got, test.want)
		}
	}
}

// Ingress knows the addresses of its own listeners while they serve.
func TestListeners(t *testing.T) {
	var ls listeners
	every, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer every.Close()
	one, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	everyPort, onePort := uint16(every.Addr().(*net.TCPAddr).Port), uint16(one.Addr().(*net.TCPAddr).Port)
	removeEvery, removeOne := ls.add(every), ls.add(one)
	check := func(addr string, port uint16, want bool) {
		t.Helper()
		if got := ls.at(netip.AddrPortFrom(netip.MustParseAddr(addr), port)); got != want {
			t.Errorf("%s:%d: %v, want %v", addr, port, got, want)
		}
	}
	check("192.0.2.1", everyPort, true)
	check("2001:db8::1", everyPort, true)
	check("127.0.0.1", onePort, true)
	check("192.0.2.1", onePort, false)
	removeEvery()
	check("192.0.2.1", everyPort, false)
	check("127.0.0.1", onePort, true)
	removeOne()
	check("127.0.0.1", onePort, false)
}
