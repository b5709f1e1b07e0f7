package netstack

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// newRoutedWorld is newWorld with addresses of load balancers, 203.0.113.0/24 and 2001:db8:1b::/64, that the host
// routes into the host TAP.
func newRoutedWorld(t *testing.T) *world { return newRoutedWorldOver(t, make([]byte, flow.Size(4096))) }

func newRoutedWorldOver(t *testing.T, memory []byte) *world {
	w := newWorldOver(t, nil, memory)
	w.addLoadBalancers()
	return w
}

func (w *world) addLoadBalancers() {
	w.balancer.exposed = map[netip.Addr]bool{}
	for front, choice := range map[string]packet.Choice{
		"203.0.113.1:80":        picked(1, "10.244.1.11:8080"),
		"203.0.113.2:80":        picked(2, "10.244.2.10:8080"),
		"203.0.113.3:80":        {Kind: packet.NoEndpoints},
		"203.0.113.4:80":        {Kind: packet.DropLocal},
		"203.0.113.5:80":        {Kind: packet.DropSource},
		"203.0.113.6:80":        picked(6, "172.31.0.11:8080"),    // the host itself
		"203.0.113.7:80":        picked(7, "172.31.0.12:8080"),    // the host of node-2
		"203.0.113.8:80":        picked(8, "10.244.9.7:8080"),     // behind stock WireGuard
		"203.0.113.9:80":        picked(9, "10.244.1.99:8080"),    // an address that nobody has
		"203.0.113.10:80":       picked(11, "198.51.100.99:8080"), // outside of the cluster
		"[2001:db8:1b::3]:80":   picked(12, "[2001:db8:c::99]:8080"),
		"[2001:db8:1b::1]:80":   picked(4, "[fd00:10:244:1::11]:8080"),
		"[2001:db8:1b::2]:80":   picked(10, "[fd00:10:244:2::10]:8080"),
		"203.0.113.1:81":        {Kind: packet.UnknownPort},
		"203.0.113.200:80":      picked(1, "10.244.1.11:8080"), // a Service leads there, but it is not exposed
		"[fd00:10:244:1::c]:80": picked(4, "[fd00:10:244:1::11]:8080"),
	} {
		w.balancer.picks[ap(front)] = choice
		if a := ap(front).Addr(); a != netip.MustParseAddr("203.0.113.200") && a != netip.MustParseAddr("fd00:10:244:1::c") {
			w.balancer.exposed[a] = true
		}
	}
	for id := uint64(6); id <= 12; id++ {
		w.balancer.states[id] = packet.BackendReady
	}
	w.set()
}

const encapOut = "node-2 encap 10.244.1.1 > 10.244.2.1: "

// TestRoutedClients: the host TAP brings packets of clients outside for addresses of load balancers. They are
// translated, keep the client's address, and their answers leave by the host TAP.
func TestRoutedClients(t *testing.T) {
	const S, A, SA = packet.SYN, packet.ACK, packet.SYN | packet.ACK
	const client, client6 = "198.51.100.7:4000", "[2001:db8:c::7]:4000"
	for name, steps := range map[string][]step{
		"to a pod here": {
			{"host", segment(client, "203.0.113.1:80", S), "b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 S", 0},
			{"b", segment("10.244.1.11:8080", client, SA), "host", "tcp 203.0.113.1:80 > 198.51.100.7:4000 SA", 0},
			{"host", segment(client, "203.0.113.1:80", A), "b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 A", 0},
		},
		"to a pod here, IPv6": {
			{"host", segment(client6, "[2001:db8:1b::1]:80", S), "b", "tcp [2001:db8:c::7]:4000 > [fd00:10:244:1::11]:8080 S", 0},
			{"b", segment("[fd00:10:244:1::11]:8080", client6, SA), "host", "tcp [2001:db8:1b::1]:80 > [2001:db8:c::7]:4000 SA", 0},
		},
		"to a pod on another node": {
			{"host", datagram(client, "203.0.113.2:80"), "link", encapOut + "udp 198.51.100.7:4000 > 10.244.2.10:8080", 0},
			{"node-2 encap", datagram("10.244.2.10:8080", client), "host", "udp 203.0.113.2:80 > 198.51.100.7:4000", 0},
		},
		"to a pod on another node, IPv6": {
			{"host", datagram(client6, "[2001:db8:1b::2]:80"), "link", encapOut + "udp [2001:db8:c::7]:4000 > [fd00:10:244:2::10]:8080", 0},
			{"node-2 encap", datagram("[fd00:10:244:2::10]:8080", client6), "host", "udp [2001:db8:1b::2]:80 > [2001:db8:c::7]:4000", 0},
		},
		"from the host of another node": {
			{"host", datagram("172.31.0.12:4000", "203.0.113.2:80"), "link", encapOut + "udp 172.31.0.12:4000 > 10.244.2.10:8080", 0},
			{"node-2 encap", datagram("10.244.2.10:8080", "172.31.0.12:4000"), "host", "udp 203.0.113.2:80 > 172.31.0.12:4000", 0},
		},
		"to the host, which would answer past the node": {
			{"host", segment(client, "203.0.113.6:80", S), "host", "tcp 10.244.1.1:4000 > 172.31.0.11:8080 S", 0},
			{"host", segment("172.31.0.11:8080", "10.244.1.1:4000", SA), "host", "tcp 203.0.113.6:80 > 198.51.100.7:4000 SA", 0},
		},
		"to the host of another node": {
			{"host", segment(client, "203.0.113.7:80", S), "link", "node-2 tcp 10.244.1.1:4000 > 172.31.0.12:8080 S", 0},
			{"node-2", segment("172.31.0.12:8080", "10.244.1.1:4000", SA), "host", "tcp 203.0.113.7:80 > 198.51.100.7:4000 SA", 0},
		},
		"behind stock WireGuard": {
			{"host", segment(client, "203.0.113.8:80", S), "link", "stock tcp 10.244.1.1:4000 > 10.244.9.7:8080 S", 0},
			{"stock", segment("10.244.9.7:8080", "10.244.1.1:4000", SA), "host", "tcp 203.0.113.8:80 > 198.51.100.7:4000 SA", 0},
		},
		"no endpoints": {
			{"host", segment(client, "203.0.113.3:80", S), "host", "tcp 203.0.113.3:80 > 198.51.100.7:4000 RA", NoEndpoints},
			{"host", datagram(client, "203.0.113.3:80"), "host", "icmp 3/3 203.0.113.3 > 198.51.100.7 about 198.51.100.7:4000 > 203.0.113.3:80", NoEndpoints},
		},
		"no such port":        {{"host", segment(client, "203.0.113.1:81", S), "host", "tcp 203.0.113.1:81 > 198.51.100.7:4000 RA", UnknownPort}},
		"an endpoint is gone": {{"host", datagram(client, "203.0.113.9:80"), "host", "icmp 3/1 203.0.113.9 > 198.51.100.7 about 198.51.100.7:4000 > 203.0.113.9:80", NoRoute}},
		"an endpoint outside": {
			{"host", segment(client, "203.0.113.10:80", S), "host", "icmp 3/1 203.0.113.10 > 198.51.100.7 about 198.51.100.7:4000 > 203.0.113.10:80", NoRoute},
			{"host", datagram(client, "203.0.113.10:80"), "host", "icmp 3/1 203.0.113.10 > 198.51.100.7 about 198.51.100.7:4000 > 203.0.113.10:80", NoRoute},
		},
		"an endpoint outside, IPv6": {{"host", datagram(client6, "[2001:db8:1b::3]:80"), "host", "icmp 1/3 2001:db8:1b::3 > 2001:db8:c::7 about [2001:db8:c::7]:4000 > [2001:db8:1b::3]:80", NoRoute}},
		"no endpoint here":          {{"host", segment(client, "203.0.113.4:80", S), "", "", LocalPolicy}},
		"not in source ranges":      {{"host", segment(client, "203.0.113.5:80", S), "", "", SourceRange}},
		"a process of the host": {
			{"host", segment("10.244.1.2:4000", "203.0.113.1:80", S), "b", "tcp 10.244.1.2:4000 > 10.244.1.11:8080 S", 0},
			{"b", segment("10.244.1.11:8080", "10.244.1.2:4000", SA), "host", "tcp 203.0.113.1:80 > 10.244.1.2:4000 SA", 0},
		},
		"to an address that is not exposed": {{"host", segment(client, "203.0.113.200:80", S), "", "", NotExposed}},
		"to an address that nobody has":     {{"host", segment(client, "203.0.113.201:80", S), "", "", NotExposed}},
		"to a pod":                          {{"host", segment(client, "10.244.1.11:8080", S), "", "", NotExposed}},
		"to a ClusterIP":                    {{"host", segment(client, "10.96.0.1:80", S), "", "", NotExposed}},
		"to the stack":                      {{"host", datagram(client, "10.96.0.10:53"), "", "", NotExposed}},
		"to another node's pod":             {{"host", segment(client, "10.244.2.10:8080", S), "", "", NotExposed}},
		"to the outside":                    {{"host", segment(client, "192.0.2.1:443", S), "", "", NotExposed}},
		"to a node port":                    {{"host", segment(client, "172.31.0.11:54323", S), "", "", NotExposed}},
		"multicast":                         {{"host", datagram(client, "224.0.0.1:80"), "", "", Multicast}},
		"as a pod":                          {{"host", segment("10.244.1.10:4000", "203.0.113.1:80", S), "", "", Spoofed}},
		"as a pod of another node":          {{"host", segment("10.244.2.10:4000", "203.0.113.1:80", S), "", "", Spoofed}},
		"as a Service":                      {{"host", segment("10.96.0.1:4000", "203.0.113.1:80", S), "", "", Spoofed}},
		"as the stack":                      {{"host", segment("10.244.1.1:4000", "203.0.113.1:80", S), "", "", Spoofed}},
		"as localhost":                      {{"host", segment("127.0.0.1:4000", "203.0.113.1:80", S), "", "", Spoofed}},
		"as a load balancer":                {{"host", datagram("203.0.113.2:80", "203.0.113.1:80"), "", "", Spoofed}},
		"from a pod":                        {{"a", segment(client, "203.0.113.1:80", S), "", "", Spoofed}},
		"from a peer":                       {{"node-2", segment(client, "203.0.113.1:80", S), "", "", SpoofedPeer}},
		"redirected":                        {{"host", icmp("198.51.100.7", "203.0.113.1", 5, 1, make([]byte, 28)), "", "", LinkOnly}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRoutedWorld(t)
			w.take(steps)
		})
	}
}

// TestRoutedClientTakesNoConversation: what claims to come from the far end of a pod's connection with the outside, or
// of a flow with another node, is not of it, whatever the tuple is.
func TestRoutedClientTakesNoConversation(t *testing.T) {
	w := newRoutedWorld(t)
	w.exchange(exchange{"node-2 encap", datagram("198.51.100.7:4000", "10.244.1.11:8080"), "b", "udp 198.51.100.7:4000 > 10.244.1.11:8080"})
	w.from("host", datagram("198.51.100.7:4000", "10.244.1.11:8080"))
	w.counted(NotExposed, 1)
	// A pod asks a server outside; whoever forges the answer sends it through the node's kernel.
	query := flow.Entry{
		Orig:  packet.Tuple{Src: packet.AddrFrom(netip.MustParseAddr("10.244.1.10")), Dst: packet.AddrFrom(netip.MustParseAddr("192.0.2.53")), SrcPort: 1000, DstPort: 53, Proto: packet.UDP},
		Reply: packet.Tuple{Src: packet.AddrFrom(netip.MustParseAddr("192.0.2.53")), Dst: packet.AddrFrom(netip.MustParseAddr("10.244.1.10")), SrcPort: 53, DstPort: 1000, Proto: packet.UDP},
	}
	if _, r := w.path.flows.Insert(&query); r != flow.Inserted {
		t.Fatal(r)
	}
	w.from("host", datagram("192.0.2.53:53", "10.244.1.10:1000"))
	w.counted(NotExposed, 2)
	w.silent()
}

// TestRoutedErrors: ICMP errors about flows of routed clients arrive at the ends of these flows, in both directions.
func TestRoutedErrors(t *testing.T) {
	const client, client6 = "198.51.100.7:4000", "[2001:db8:c::7]:4000"
	for name, c := range map[string]struct{ there, back, err exchange }{
		"a router beyond the host, to a pod here": {
			exchange{"host", datagram(client, "203.0.113.1:80"), "b", "udp 198.51.100.7:4000 > 10.244.1.11:8080"},
			exchange{"b", datagram("10.244.1.11:8080", client), "host", "udp 203.0.113.1:80 > 198.51.100.7:4000"},
			exchange{"host", icmp("192.0.2.9", "203.0.113.1", 3, 4, datagram("203.0.113.1:80", client).IP()), "b",
				"icmp 3/4 198.51.100.7 > 10.244.1.11 about 10.244.1.11:8080 > 198.51.100.7:4000"},
		},
		"the host itself, to a pod here": {
			exchange{"host", datagram(client, "203.0.113.1:80"), "b", "udp 198.51.100.7:4000 > 10.244.1.11:8080"},
			exchange{"b", datagram("10.244.1.11:8080", client), "host", "udp 203.0.113.1:80 > 198.51.100.7:4000"},
			exchange{"host", icmp("172.31.0.11", "203.0.113.1", 3, 4, datagram("203.0.113.1:80", client).IP()), "b",
				"icmp 3/4 198.51.100.7 > 10.244.1.11 about 10.244.1.11:8080 > 198.51.100.7:4000"},
		},
		"the host itself, to another node's pod": {
			exchange{"host", datagram(client, "203.0.113.2:80"), "link", encapOut + "udp 198.51.100.7:4000 > 10.244.2.10:8080"},
			exchange{"node-2 encap", datagram("10.244.2.10:8080", client), "host", "udp 203.0.113.2:80 > 198.51.100.7:4000"},
			exchange{"host", icmp("10.244.1.2", "203.0.113.2", 3, 4, datagram("203.0.113.2:80", client).IP()), "link",
				encapOut + "icmp 3/4 198.51.100.7 > 10.244.2.10 about 10.244.2.10:8080 > 198.51.100.7:4000"},
		},
		"a router, to the host of another node": {
			exchange{"host", datagram(client, "203.0.113.7:80"), "link", "node-2 udp 10.244.1.1:4000 > 172.31.0.12:8080"},
			exchange{"node-2", datagram("172.31.0.12:8080", "10.244.1.1:4000"), "host", "udp 203.0.113.7:80 > 198.51.100.7:4000"},
			exchange{"host", icmp("192.0.2.9", "203.0.113.7", 3, 4, datagram("203.0.113.7:80", client).IP()), "link",
				"node-2 icmp 3/4 10.244.1.1 > 172.31.0.12 about 172.31.0.12:8080 > 10.244.1.1:4000"},
		},
		"the client, IPv6": {
			exchange{"host", datagram(client6, "[2001:db8:1b::2]:80"), "link", encapOut + "udp [2001:db8:c::7]:4000 > [fd00:10:244:2::10]:8080"},
			exchange{"node-2 encap", datagram("[fd00:10:244:2::10]:8080", client6), "host", "udp [2001:db8:1b::2]:80 > [2001:db8:c::7]:4000"},
			exchange{"host", icmp("2001:db8:c::7", "2001:db8:1b::2", 1, 4, datagram("[2001:db8:1b::2]:80", client6).IP()), "link",
				encapOut + "icmp 1/4 2001:db8:c::7 > fd00:10:244:2::10 about [fd00:10:244:2::10]:8080 > [2001:db8:c::7]:4000"},
		},
		"a pod here": {
			exchange{"host", datagram(client, "203.0.113.1:80"), "b", "udp 198.51.100.7:4000 > 10.244.1.11:8080"},
			exchange{"b", datagram("10.244.1.11:8080", client), "host", "udp 203.0.113.1:80 > 198.51.100.7:4000"},
			exchange{"b", icmp("10.244.1.11", "198.51.100.7", 3, 3, datagram(client, "10.244.1.11:8080").IP()), "host",
				"icmp 3/3 203.0.113.1 > 198.51.100.7 about 198.51.100.7:4000 > 203.0.113.1:80"},
		},
		"a pod of another node": {
			exchange{"host", datagram(client, "203.0.113.2:80"), "link", encapOut + "udp 198.51.100.7:4000 > 10.244.2.10:8080"},
			exchange{"node-2 encap", datagram("10.244.2.10:8080", client), "host", "udp 203.0.113.2:80 > 198.51.100.7:4000"},
			exchange{"node-2 encap", icmp("10.244.2.10", "198.51.100.7", 3, 3, datagram(client, "10.244.2.10:8080").IP()), "host",
				"icmp 3/3 203.0.113.2 > 198.51.100.7 about 198.51.100.7:4000 > 203.0.113.2:80"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRoutedWorld(t)
			w.exchange(c.there)
			w.exchange(c.back)
			w.exchange(c.err)
			// About packets that were never sent, and with another destination, the same sender is not believed.
			stray := c.err.packet
			stray.Dst = netip.AddrPortFrom(stray.Dst.Addr().Next(), 0)
			w.from(c.err.from, stray)
			w.until(func() bool {
				d := w.path.Stats().Drops
				return d[StrayError.String()]+d[BadEncap.String()] == 1
			})
			w.silent()
		})
	}
}

// TestRoutedErrorsStayAtRoutedFlows: nobody outside ends or slows down a connection of a pod or of the host by an ICMP
// error through the host TAP.
func TestRoutedErrorsStayAtRoutedFlows(t *testing.T) {
	w := newRoutedWorld(t)
	var sent uint64
	for _, e := range known {
		w.exchange(e)
		s := e.packet
		quoted := s
		if s.Src.Addr().Is4() {
			for _, err := range about("198.51.100.7", s.Src.Addr().String(), quoted) {
				w.from("host", err)
				sent++
			}
		}
	}
	w.counted(StrayError, sent)
	w.silent()
}

// TestRoutedFragments: fragments of a routed client, and of the answer, take the way of their first, in any order.
func TestRoutedFragments(t *testing.T) {
	for _, c := range []struct{ client, front, backend, sender string }{
		{"198.51.100.7:4000", "203.0.113.1:80", "10.244.1.11:8080", "b"},
		{"[2001:db8:c::7]:4000", "[2001:db8:1b::1]:80", "[fd00:10:244:1::11]:8080", "b"},
		{"198.51.100.7:4000", "203.0.113.2:80", "10.244.2.10:8080", ""},
	} {
		for _, reversed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s reversed=%t", c.front, reversed), func(t *testing.T) {
				w := newRoutedWorld(t)
				there, back := pieces(t, large(c.client, c.front, 7)), pieces(t, large(c.backend, c.client, 8))
				if reversed {
					slices.Reverse(there)
					slices.Reverse(back)
				}
				for _, ip := range there {
					w.fromIP("host", ip)
				}
				if got := w.arrived(len(there)); len(got) != len(there) {
					t.Fatalf("of %d fragments arrived %q", len(there), got)
				}
				for _, ip := range back {
					if c.sender != "" {
						w.fromIP(c.sender, ip)
					} else {
						w.path.FromLink(node2, [][]byte{encapsulateIP(ip, "10.244.2.1", "10.244.1.1")})
					}
				}
				d := w.devices["host"]
				for range back {
					var p packet.Packet
					if fault := p.ParseFrame(<-d.Frames()); fault != packet.Good || p.Tuple.Src.Netip() != ap(c.front).Addr() || p.Tuple.Dst.Netip() != ap(c.client).Addr() {
						t.Fatalf("the client got fault %d, %v", fault, p.Tuple)
					}
				}
				w.silent()
			})
		}
	}
}

// TestRoutedTooBig: a routed client's packet that does not fit the way to another node is answered from the address
// that the client knows.
func TestRoutedTooBig(t *testing.T) {
	w := newRoutedWorld(t)
	w.link.SetMTU(1300)
	s := datagram("198.51.100.7:4000", "203.0.113.2:80")
	s.Payload = make([]byte, 1300)
	w.from("host", s)
	w.expect("host", "icmp 3/4 203.0.113.2 > 198.51.100.7 about 198.51.100.7:4000 > 203.0.113.2:80")
}

// TestRoutedRestart: flows of routed clients go on in the next agent, and so do those whose Service is gone.
func TestRoutedRestart(t *testing.T) {
	memory := make([]byte, flow.Size(4096))
	w := newWorldOver(t, nil, memory)
	w.addLoadBalancers()
	const client = "198.51.100.7:4000"
	w.exchange(exchange{"host", segment(client, "203.0.113.1:80", packet.SYN), "b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 S"})
	w.exchange(exchange{"b", segment("10.244.1.11:8080", client, packet.SYN|packet.ACK), "host", "tcp 203.0.113.1:80 > 198.51.100.7:4000 SA"})
	w.path.Close()

	w = newWorldOver(t, nil, memory)
	w.addLoadBalancers()
	w.exchange(exchange{"b", segment("10.244.1.11:8080", client, packet.ACK), "host", "tcp 203.0.113.1:80 > 198.51.100.7:4000 A"})
	w.exchange(exchange{"host", segment(client, "203.0.113.1:80", packet.ACK), "b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 A"})

	delete(w.balancer.picks, ap("203.0.113.1:80"))
	w.balancer.exposed[netip.MustParseAddr("203.0.113.1")] = false
	w.set()
	w.config.MTU++
	w.set()
	w.exchange(exchange{"host", segment(client, "203.0.113.1:80", packet.ACK), "b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 A"})
	w.from("host", segment("198.51.100.7:4001", "203.0.113.1:80", packet.SYN))
	w.dropped(NotExposed)
	w.silent()
}

// TestRoutedFlood: clients outside that flood the flow table take no flow from a pod, and of each other's only those of
// the ones who have the most.
func TestRoutedFlood(t *testing.T) {
	w := newRoutedWorld(t)
	// The pod and one client have connections.
	const S, SA, A = packet.SYN, packet.SYN | packet.ACK, packet.ACK
	w.exchange(exchange{"a", segment("10.244.1.10:1000", "10.96.0.1:80", S), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S"})
	w.exchange(exchange{"b", segment("10.244.1.11:8080", "10.244.1.10:1000", SA), "a", "tcp 10.96.0.1:80 > 10.244.1.10:1000 SA"})
	w.exchange(exchange{"host", segment("198.51.100.7:4000", "203.0.113.1:80", S), "b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 S"})
	w.exchange(exchange{"b", segment("10.244.1.11:8080", "198.51.100.7:4000", SA), "host", "tcp 203.0.113.1:80 > 198.51.100.7:4000 SA"})
	const flood = 3 * 4096
	sent := uint64(0)
	for i := range flood {
		w.from("host", segment(fmt.Sprintf("192.0.2.66:%d", 1+i), "203.0.113.1:80", S))
		if sent++; sent%512 == 0 {
			for range 512 {
				<-w.devices["b"].Frames()
			}
		}
	}
	if st := w.path.flows.Stats(); st.Evicted.FromOwn == 0 || st.Evicted.FromMost != 0 {
		t.Errorf("flows that made room: %+v, want only the outside's own", st.Evicted)
	}
	w.exchange(exchange{"a", segment("10.244.1.10:1000", "10.96.0.1:80", A), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 A"})
	w.exchange(exchange{"b", segment("10.244.1.11:8080", "198.51.100.7:4000", A), "host", "tcp 203.0.113.1:80 > 198.51.100.7:4000 A"})
	w.silent()
}
