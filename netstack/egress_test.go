package netstack

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/quota"
	"tapestry.dev/tapestry/test/await"
)

const (
	egress, egress6 = "203.0.113.50", "2001:db8:1b::50"
	far             = "203.0.113.51"
)

// newEgressWorld is newExitWorld with egress addresses: pod a leaves from egress and egress6 by this node, pod b from
// far by node-2.
func newEgressWorld(t *testing.T) *world { return newEgressWorldOver(t, make([]byte, flow.Size(4096))) }

// newEgressWorldOver is newEgressWorld over the flow memory of an earlier node.
func newEgressWorldOver(t *testing.T, memory []byte) *world {
	w := newExitWorldOver(t, memory)
	w.path.SetExits(exit.New(egressConfig(exit.Gateway{Here: true}, exit.Gateway{Peer: node2})))
	return w
}

func egressConfig(at, farAt exit.Gateway) exit.Config {
	return exit.Config{
		Routed: addresstest.Prefixes("192.0.2.0/24", "2001:db8:d::/48"),
		Pods: exit.Pods{
			Addresses: addresstest.Addrs(egress, egress6, far),
			Addrs:     map[string][]netip.Addr{"a": addresstest.Addrs(egress, egress6), "b": addresstest.Addrs(far)},
		},
		Gateways: map[netip.Addr]exit.Gateway{netip.MustParseAddr(egress): at, netip.MustParseAddr(egress6): at, netip.MustParseAddr(far): farAt},
	}
}

func TestEgressAddress(t *testing.T) {
	const S, A, SA, R = packet.SYN, packet.ACK, packet.SYN | packet.ACK, packet.RST
	const a, a6, b, server, server6 = "10.244.1.10:1000", "[fd00:10:244:1::10]:1000", "10.244.1.11:1000", "198.51.100.1:443", "[2001:db8:c::1]:443"
	for name, steps := range map[string][]step{
		"a pod of the gateway": {
			{"a", segment(a, server, S), "host", "tcp 203.0.113.50:1000 > 198.51.100.1:443 S", 0},
			{"host", segment(server, "203.0.113.50:1000", SA), "a", "tcp 198.51.100.1:443 > 10.244.1.10:1000 SA", 0},
			{"a", segment(a, server, A), "host", "tcp 203.0.113.50:1000 > 198.51.100.1:443 A", 0},
			{"host", segment(server, "203.0.113.50:1000", R), "a", "tcp 198.51.100.1:443 > 10.244.1.10:1000 R", 0},
		},
		"IPv6": {
			{"a", segment(a6, server6, S), "host", "tcp [2001:db8:1b::50]:1000 > [2001:db8:c::1]:443 S", 0},
			{"host", segment(server6, "[2001:db8:1b::50]:1000", SA), "a", "tcp [2001:db8:c::1]:443 > [fd00:10:244:1::10]:1000 SA", 0},
		},
		"a range that is not masqueraded": {{"a", segment(a, "192.0.2.1:443", S), "host", "tcp 203.0.113.50:1000 > 192.0.2.1:443 S", 0}},
		"by a Service that leads outside": {
			{"a", segment(a, "203.0.113.10:80", S), "host", "tcp 203.0.113.50:1000 > 198.51.100.99:8080 S", 0},
			{"host", segment("198.51.100.99:8080", "203.0.113.50:1000", SA), "a", "tcp 203.0.113.10:80 > 10.244.1.10:1000 SA", 0},
			{"a", segment(a, "203.0.113.10:80", A), "host", "tcp 203.0.113.50:1000 > 198.51.100.99:8080 A", 0},
		},
		"a ping": {
			{"a", echo("10.244.1.10:7", "198.51.100.1:0", 8), "host", "icmp 8 203.0.113.50 > 198.51.100.1 id 7", 0},
			{"host", echo("198.51.100.1:7", "203.0.113.50:0", 0), "a", "icmp 0 198.51.100.1 > 10.244.1.10 id 7", 0},
		},
		"a connection that goes on by another gateway": {{"a", segment(a, server, A), "host", "tcp 203.0.113.50:1000 > 198.51.100.1:443 A", 0}},
		"a stray reset shows no pod":                   {{"a", segment(a, server, R), "", "", NoExit}},
		"a router outside says that it does not fit": {
			{"a", datagram(a, server), "host", "udp 203.0.113.50:1000 > 198.51.100.1:443", 0},
			{"host", icmp("198.51.100.9", "203.0.113.50", 3, 4, datagram("203.0.113.50:1000", server).IP()), "a", "icmp 3/4 198.51.100.9 > 10.244.1.10 about 10.244.1.10:1000 > 198.51.100.1:443", 0},
		},
		"the pod says that nobody listens any more": {
			{"a", datagram(a, server), "host", "udp 203.0.113.50:1000 > 198.51.100.1:443", 0},
			{"host", datagram(server, "203.0.113.50:1000"), "a", "udp 198.51.100.1:443 > 10.244.1.10:1000", 0},
			{"a", icmp("10.244.1.10", "198.51.100.1", 3, 3, datagram(server, a).IP()), "host", "icmp 3/3 203.0.113.50 > 198.51.100.1 about 198.51.100.1:443 > 203.0.113.50:1000", 0},
		},
		"by another node": {
			{"b", segment(b, server, S), "link", encapOut + "tcp 203.0.113.51:1000 > 198.51.100.1:443 S", 0},
			{"node-2 encap", segment(server, "203.0.113.51:1000", SA), "b", "tcp 198.51.100.1:443 > 10.244.1.11:1000 SA", 0},
			{"b", segment(b, server, A), "link", encapOut + "tcp 203.0.113.51:1000 > 198.51.100.1:443 A", 0},
		},
		"by another node, errors": {
			{"b", datagram(b, server), "link", encapOut + "udp 203.0.113.51:1000 > 198.51.100.1:443", 0},
			{"node-2 encap", icmp("198.51.100.1", "203.0.113.51", 3, 4, datagram("203.0.113.51:1000", server).IP()), "b", "icmp 3/4 198.51.100.1 > 10.244.1.11 about 10.244.1.11:1000 > 198.51.100.1:443", 0},
			{"b", icmp("10.244.1.11", "198.51.100.1", 3, 3, datagram(server, b).IP()), "link", encapOut + "icmp 3/3 203.0.113.51 > 198.51.100.1 about 198.51.100.1:443 > 203.0.113.51:1000", 0},
		},
		"for a pod of another node": {
			{"node-2 encap", segment("203.0.113.50:1000", server, S), "host", "tcp 203.0.113.50:1000 > 198.51.100.1:443 S", 0},
			{"host", segment(server, "203.0.113.50:1000", SA), "link", encapOut + "tcp 198.51.100.1:443 > 203.0.113.50:1000 SA", 0},
			{"node-2 encap", segment("203.0.113.50:1000", server, A), "host", "tcp 203.0.113.50:1000 > 198.51.100.1:443 A", 0},
		},
		"for a pod of another node, errors": {
			{"node-2 encap", datagram("203.0.113.50:1000", server), "host", "udp 203.0.113.50:1000 > 198.51.100.1:443", 0},
			{"host", icmp("198.51.100.9", "203.0.113.50", 3, 4, datagram("203.0.113.50:1000", server).IP()), "link", encapOut + "icmp 3/4 198.51.100.9 > 203.0.113.50 about 203.0.113.50:1000 > 198.51.100.1:443", 0},
			{"node-2 encap", icmp("203.0.113.50", "198.51.100.1", 3, 3, datagram(server, "203.0.113.50:1000").IP()), "host", "icmp 3/3 203.0.113.50 > 198.51.100.1 about 198.51.100.1:443 > 203.0.113.50:1000", 0},
		},
		"a family without an address":                  {{"b", segment("[fd00:10:244:1::11]:1000", server6, S), "b", "icmp 1/1 fd00:10:244:1::1 > fd00:10:244:1::11 about [fd00:10:244:1::11]:1000 > [2001:db8:c::1]:443", NoExit}},
		"in the cluster as ever":                       {{"a", segment(a, "10.96.0.1:80", S), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S", 0}},
		"what pods may not dial":                       {{"a", segment(a, "192.0.2.66:443", S), "a", "tcp 192.0.2.66:443 > 10.244.1.10:1000 RA", EgressDenied}},
		"who was not asked":                            {{"host", segment(server, "203.0.113.50:1000", S), "", "", NotExposed}},
		"who claims the address":                       {{"host", segment("203.0.113.50:9", "203.0.113.1:80", S), "b", "tcp 203.0.113.50:9 > 10.244.1.11:8080 S", 0}},
		"another node uses an address that is its own": {{"node-2 encap", segment("203.0.113.51:1000", server, S), "", "", BadEncap}},
		"another node uses what is no egress address":  {{"node-2 encap", segment("203.0.113.52:1000", server, S), "", "", BadEncap}},
		"another node does not encapsulate":            {{"node-2", segment("203.0.113.50:1000", server, S), "", "", SpoofedPeer}},
		"another node reaches the host":                {{"node-2 encap", segment("203.0.113.50:1000", "172.31.0.11:22", S), "", "", BadEncap}},
		"another node reaches a pod by it":             {{"node-2 encap", segment("203.0.113.50:1000", "10.244.1.11:22", S), "", "", BadEncap}},
		"another node's pod without the address":       {{"node-2 encap", segment("10.244.2.10:1000", server, S), "", "", BadEncap}},
		"another node answers what was not asked":      {{"node-2 encap", datagram(server, "203.0.113.51:1000"), "", "", BadEncap}},
		"another node answers for what left by this": {
			{"a", datagram(a, server), "host", "udp 203.0.113.50:1000 > 198.51.100.1:443", 0},
			{"node-2 encap", datagram(server, "203.0.113.50:1000"), "", "", BadEncap},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEgressWorld(t)
			w.take(steps)
		})
	}
}

// Pods of two nodes that have the same source port get one each, and the answers go to the right one.
func TestEgressPorts(t *testing.T) {
	w := newEgressWorld(t)
	const server = "198.51.100.1:443"
	w.exchange(exchange{"a", datagram("10.244.1.10:1000", server), "host", "udp 203.0.113.50:1000 > " + server})
	w.from("node-2 encap", datagram("203.0.113.50:1000", server))
	port := w.portTo("host", server)
	if port == 1000 {
		t.Fatal("two flows have the same port")
	}
	w.exchange(exchange{"host", datagram(server, fmt.Sprintf("203.0.113.50:%d", port)), "link", encapOut + "udp " + server + " > 203.0.113.50:1000"})
	w.exchange(exchange{"host", datagram(server, "203.0.113.50:1000"), "a", "udp " + server + " > 10.244.1.10:1000"})
}

// portTo waits for a packet to server, and returns the port it comes from.
func (w *world) portTo(where, server string) uint16 {
	w.t.Helper()
	select {
	case f := <-w.devices[where].Frames():
		var p packet.Packet
		if p.ParseFrame(f) != packet.Good || p.Tuple.Dst != packet.AddrFrom(ap(server).Addr()) {
			w.t.Fatalf("%s got %v", where, p.Tuple)
		}
		return p.Tuple.SrcPort
	case <-time.After(await.Patience):
		w.t.Fatalf("%s got nothing; %v", where, w.path.Stats())
	}
	return 0
}

// A connection follows its gateway, from this node to another and back, with the port that the server knows. While
// there is none, or none in reach, nothing leaves.
func TestEgressFailover(t *testing.T) {
	const a, server = "10.244.1.10:1000", "198.51.100.1:443"
	here, there := exit.Gateway{Here: true}, exit.Gateway{Peer: node2}
	w := newEgressWorld(t)
	to := func(g exit.Gateway) { w.path.SetExits(exit.New(egressConfig(g, there))) }
	w.exchange(exchange{"a", segment(a, server, packet.SYN), "host", "tcp 203.0.113.50:1000 > 198.51.100.1:443 S"})
	to(there)
	w.exchange(exchange{"a", segment(a, server, packet.ACK), "link", encapOut + "tcp 203.0.113.50:1000 > 198.51.100.1:443 A"})
	w.exchange(exchange{"node-2 encap", segment(server, "203.0.113.50:1000", packet.ACK), "a", "tcp 198.51.100.1:443 > 10.244.1.10:1000 A"})
	w.from("host", segment(server, "203.0.113.50:1000", packet.ACK)) // the old way is none any more
	w.dropped(NotExposed)
	for i, none := range []exit.Gateway{{}, {Peer: stock}, {Peer: 77}} {
		to(none)
		w.from("a", segment(a, server, packet.ACK))
		w.counted(NoExit, uint64(i+1))
		w.expect("a", "icmp 3/13 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 198.51.100.1:443")
	}
	to(here)
	w.exchange(exchange{"a", segment(a, server, packet.ACK), "host", "tcp 203.0.113.50:1000 > 198.51.100.1:443 A"})
	w.exchange(exchange{"host", segment(server, "203.0.113.50:1000", packet.ACK), "a", "tcp 198.51.100.1:443 > 10.244.1.10:1000 A"})
	// Nor is that one, which answers no late answer.
	w.from("node-2 encap", segment(server, "203.0.113.50:1000", packet.ACK))
	w.dropped(BadEncap)
	w.silent()
}

// bothLeaveBy has the pods a and b leave with one address by a gateway. others are the other gateways' nodes.
func (w *world) bothLeaveBy(g, there exit.Gateway) {
	c := egressConfig(g, there)
	c.Pods.Addrs["b"] = c.Pods.Addrs["a"]
	w.path.SetExits(exit.New(c))
}

// A connection that follows its gateway keeps the port that the server knows, also where that is not its own, and is
// not charged to the pod again.
func TestEgressFailoverPort(t *testing.T) {
	const server = "198.51.100.1:443"
	there := exit.Gateway{Peer: node2}
	w := newEgressWorld(t)
	to := func(g exit.Gateway) { w.bothLeaveBy(g, there) }
	to(exit.Gateway{Here: true})
	w.path.SetQuotas(map[string]quota.Quota{"b": {Flows: 1}})
	w.exchange(exchange{"a", segment("10.244.1.10:1000", server, packet.SYN), "host", "tcp 203.0.113.50:1000 > " + server + " S"})
	w.from("b", segment("10.244.1.11:1000", server, packet.SYN))
	port := w.portTo("host", server)
	if port == 1000 {
		t.Fatal("two connections have the same port")
	}
	to(there)
	w.exchange(exchange{"b", segment("10.244.1.11:1000", server, packet.ACK), "link", encapOut + fmt.Sprintf("tcp 203.0.113.50:%d > %s A", port, server)})
	w.exchange(exchange{"a", segment("10.244.1.10:1000", server, packet.ACK), "link", encapOut + "tcp 203.0.113.50:1000 > " + server + " A"})
	w.exchange(exchange{"node-2 encap", segment(server, fmt.Sprintf("203.0.113.50:%d", port), packet.ACK), "b", "tcp " + server + " > 10.244.1.11:1000 A"})
}

// A pod whose echoes had to get another number, since a pod with the same address has theirs, keeps that number.
func TestEgressFailoverPing(t *testing.T) {
	there := exit.Gateway{Peer: node2}
	w := newEgressWorld(t)
	to := func(g exit.Gateway) { w.bothLeaveBy(g, there) }
	const server, server6 = "198.51.100.1", "2001:db8:c::1"
	for _, c := range []struct {
		a, b, server, egress string
		asks, answers        uint8
	}{{"10.244.1.10", "10.244.1.11", server, egress, 8, 0}, {"fd00:10:244:1::10", "fd00:10:244:1::11", server6, egress6, 128, 129}} {
		to(exit.Gateway{Here: true})
		ping := func(src, dst string, id uint16, kind uint8) netstacktest.Spec {
			s := echo("1.2.3.4:0", "1.2.3.4:0", kind)
			s.Src, s.Dst = netip.AddrPortFrom(netip.MustParseAddr(src), id), netip.AddrPortFrom(netip.MustParseAddr(dst), 0)
			if s.Src.Addr().Is6() {
				s.Proto = packet.ICMPv6
			}
			return s
		}
		w.exchange(exchange{"a", ping(c.a, c.server, 7, c.asks), "host", fmt.Sprintf("icmp %d %s > %s id 7", c.asks, c.egress, c.server)})
		w.from("b", ping(c.b, c.server, 7, c.asks))
		id := w.portTo("host", netip.AddrPortFrom(netip.MustParseAddr(c.server), 0).String())
		if id == 7 {
			t.Fatal("two pods have the same number")
		}
		for _, move := range []struct {
			gateway   exit.Gateway
			by, where string
			sent      string
		}{{there, "link", "node-2 encap", encapOut}, {exit.Gateway{Here: true}, "host", "host", ""}} {
			to(move.gateway)
			w.exchange(exchange{"b", ping(c.b, c.server, 7, c.asks), move.by, move.sent + fmt.Sprintf("icmp %d %s > %s id %d", c.asks, c.egress, c.server, id)})
			w.exchange(exchange{move.where, ping(c.server, c.egress, id, c.answers), "b", fmt.Sprintf("icmp %d %s > %s id 7", c.answers, c.server, c.b)})
		}
	}
	w.silent()
}

// The next agent of a node has the flows, and does not know the gateways yet. Known connections go on by the ways that
// they had, from the ports that they had, also where this node is the gateway. New ones wait.
func TestEgressUnsettled(t *testing.T) {
	const a, b, far2, server = "10.244.1.10:1000", "10.244.1.11:1000", "203.0.113.50:1000", "198.51.100.1:443"
	const S, A = packet.SYN, packet.ACK
	memory := make([]byte, flow.Size(4096))
	w := newEgressWorldOver(t, memory)
	w.exchange(exchange{"a", segment(a, server, S), "host", "tcp 203.0.113.50:1000 > 198.51.100.1:443 S"})
	w.exchange(exchange{"b", segment(b, server, S), "link", encapOut + "tcp 203.0.113.51:1000 > 198.51.100.1:443 S"})
	w.from("node-2 encap", segment(far2, server, S))
	port := w.portTo("host", server) // 1000 is taken
	if err := w.path.Close(); err != nil {
		t.Fatal(err)
	}
	w = newEgressWorldOver(t, memory)
	c := egressConfig(exit.Gateway{}, exit.Gateway{})
	c.Gateways = nil
	w.path.SetExits(exit.New(c))
	w.exchange(exchange{"a", segment(a, server, A), "host", "tcp 203.0.113.50:1000 > 198.51.100.1:443 A"})
	w.exchange(exchange{"host", segment(server, "203.0.113.50:1000", A), "a", "tcp 198.51.100.1:443 > 10.244.1.10:1000 A"})
	w.exchange(exchange{"b", segment(b, server, A), "link", encapOut + "tcp 203.0.113.51:1000 > 198.51.100.1:443 A"})
	w.exchange(exchange{"node-2 encap", segment(server, "203.0.113.51:1000", A), "b", "tcp 198.51.100.1:443 > 10.244.1.11:1000 A"})
	w.exchange(exchange{"node-2 encap", segment(far2, server, A), "host", fmt.Sprintf("tcp 203.0.113.50:%d > 198.51.100.1:443 A", port)})
	w.exchange(exchange{"host", segment(server, fmt.Sprintf("203.0.113.50:%d", port), A), "link", encapOut + "tcp 198.51.100.1:443 > 203.0.113.50:1000 A"})
	for i, early := range []struct{ from, src string }{{"a", "10.244.1.10:2000"}, {"b", "10.244.1.11:2000"}, {"node-2 encap", "203.0.113.50:2000"}} {
		w.from(early.from, segment(early.src, server, S))
		w.counted(NoExit, uint64(i+1))
	}
	w.silent()
}

// A pod, or another node, that uses up the ports towards a server leaves a port to everybody else, though all have one
// address.
func TestEgressPortsUsedUp(t *testing.T) {
	const server, server6 = "198.51.100.1:443", "[2001:db8:c::1]:443"
	for name, c := range map[string]struct{ hog, hogs, other, others, server, egress, where, back, none string }{
		"a pod, and another one":         {"a", "10.244.1.10", "c", "10.244.1.12", server, egress, "host", "tcp 198.51.100.1:443 > 10.244.1.12:700 SA", ""},
		"a pod, and another one of IPv6": {"a", "fd00:10:244:1::10", "c", "fd00:10:244:1::12", server6, egress6, "host", "tcp [2001:db8:c::1]:443 > [fd00:10:244:1::12]:700 SA", ""},
		"another node, and a pod":        {"node-2 encap", egress, "c", "10.244.1.12", server, egress, "host", "tcp 198.51.100.1:443 > 10.244.1.12:700 SA", encapOut},
		"a pod, and another node's":      {"a", "10.244.1.10", "node-2 encap", egress, server, egress, "host", encapOut + "tcp 198.51.100.1:443 > 203.0.113.50:700 SA", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEgressWorld(t)
			conf := egressConfig(exit.Gateway{Here: true}, exit.Gateway{})
			conf.Pods.Addrs["c"] = addresstest.Addrs(egress, egress6)
			w.attach("c", PodTAP, "10.244.1.12", "fd00:10:244:1::12")
			w.path.SetExits(exit.New(conf))
			at := func(addr string, port uint16) string {
				return netip.AddrPortFrom(netip.MustParseAddr(addr), port).String()
			}
			back := map[string]string{"a": "a", "c": "c", "node-2 encap": "link"}
			var p packet.Packet
			for port := uint16(512); port < 1024; port++ { // a privileged port is replaced by another one only
				w.from(c.hog, segment(at(c.hogs, port), c.server, packet.SYN))
				if got := w.portTo(c.where, c.server); got != port {
					t.Fatalf("the port is %d, want %d", got, port)
				}
				w.from("host", segment(c.server, at(c.egress, port), packet.SYN|packet.ACK))
				if back[c.hog] == "link" {
					<-w.link.Sent()
				} else if f := <-w.devices[c.hog].Frames(); p.ParseFrame(f) != packet.Good {
					t.Fatal("the answer is broken")
				}
				w.from(c.hog, segment(at(c.hogs, port), c.server, packet.ACK))
				w.portTo(c.where, c.server)
			}
			w.from(c.other, segment(at(c.others, 700), c.server, packet.SYN))
			port := w.portTo(c.where, c.server)
			w.exchange(exchange{"host", segment(c.server, at(c.egress, port), packet.SYN|packet.ACK), back[c.other], c.back})
			// Whoever has used them up is told at once that there is none for another connection.
			w.from(c.hog, segment(at(c.hogs, port), c.server, packet.SYN))
			w.expect(back[c.hog], c.none+fmt.Sprintf("tcp %s > %s RA", c.server, at(c.hogs, port)))
			w.counted(NoSourcePort, 1)
			w.silent()
		})
	}
}

// An attachment that comes after the table goes by it.
func TestEgressOfLaterPod(t *testing.T) {
	w := newEgressWorld(t)
	c := egressConfig(exit.Gateway{Here: true}, exit.Gateway{})
	c.Pods.Addrs["c"] = addresstest.Addrs(egress)
	w.path.SetExits(exit.New(c))
	w.attach("c", PodTAP, "10.244.1.12")
	w.exchange(exchange{"c", segment("10.244.1.12:1000", "198.51.100.1:443", packet.SYN), "host", "tcp 203.0.113.50:1000 > 198.51.100.1:443 S"})
}

// A packet of a known flow with an egress address costs no allocation: of a pod by this node, by another one, and of
// another node's by this one.
func TestEgressAllocatesNothing(t *testing.T) {
	for name, g := range map[string]exit.Gateway{"here": {Here: true}, "there": {Peer: node2}, "for another node": {Here: true}} {
		t.Run(name, func(t *testing.T) {
			w, _ := hotNode(t)
			host := &sink{}
			if err := w.path.Attach(AttachmentConfig{Name: "host", Kind: HostTAP, MAC: packet.MAC{2, 2}, Addrs: addresstest.Addrs("10.244.1.2")}, host); err != nil {
				t.Fatal(err)
			}
			w.path.SetExits(exit.New(exit.Config{
				Pods:     exit.Pods{Addresses: addresstest.Addrs(egress), Addrs: map[string][]netip.Addr{w.from.Name: addresstest.Addrs(egress)}},
				Gateways: map[netip.Addr]exit.Gateway{netip.MustParseAddr(egress): g},
			}))
			frame, buf := datagram(podA+":1", "192.0.2.1:2").Frame(w.from.MAC, packet.MAC{2, 0x54, 0x41, 0x50, 0, 1}), make([]byte, packet.MaxFrame)
			wrapped := encapsulate(datagram(egress+":1", "192.0.2.1:2"), "10.244.2.1", "10.244.1.1")
			batch := [][]byte{make([]byte, len(wrapped))}
			send := func() { buf = w.fromTAP(buf[:copy(buf[:cap(buf)], frame)]) }
			if name == "for another node" {
				send = func() { copy(batch[0], wrapped); w.path.FromLink(node2, batch) }
			}
			if n := testing.AllocsPerRun(100, send); n != 0 {
				t.Errorf("%v allocations", n)
			}
			st := w.path.Stats()
			if wentOut := map[bool]uint64{true: uint64(host.frames), false: st.Verdicts["to-link"]}[g.Here]; wentOut != 101 {
				t.Errorf("%d packets left: %+v", wentOut, st)
			}
		})
	}
}
