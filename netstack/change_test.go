package netstack

import (
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// leads makes an address of the world lead to what c says from now on; nothing else changes.
func (w *world) leads(to string, c packet.Choice, moved bool) {
	w.t.Helper()
	b := &balancer{picks: map[netip.AddrPort]packet.Choice{}, states: w.balancer.states, moved: map[netip.AddrPort]bool{}}
	for a, old := range w.balancer.picks {
		b.picks[a] = old
	}
	b.picks[ap(to)], b.moved[ap(to)] = c, moved
	w.balancer = b
	w.set()
}

// TestServiceComesLate: packets that were sent before a Service had the address went elsewhere. Packets that are sent
// again go to the Service, with the same ports and without a pause (kubernetes/kubernetes#48719).
func TestServiceComesLate(t *testing.T) {
	const S, A, SA = packet.SYN, packet.ACK, packet.SYN | packet.ACK
	const client, node, port = "10.244.1.10:1000", "172.31.0.11:30053", "172.31.0.11:30053"
	dgram, host := datagram(client, node), "udp "+client+" > "+node
	for name, c := range map[string]struct {
		before []exchange
		then   exchange
	}{
		"a SYN": {
			[]exchange{{"a", segment(client, node, S), "host", "tcp " + client + " > " + node + " S"}},
			exchange{"a", segment(client, node, S), "b", "tcp " + client + " > 10.244.1.11:8080 S"},
		},
		"a datagram": {
			[]exchange{{"a", dgram, "host", host}},
			exchange{"a", dgram, "b", "udp " + client + " > 10.244.1.11:8080"},
		},
		"a datagram that was answered": {
			[]exchange{{"a", dgram, "host", host}, {"host", datagram(node, client), "a", "udp " + node + " > " + client}},
			exchange{"a", dgram, "b", "udp " + client + " > 10.244.1.11:8080"},
		},
		"but a connection stays": {
			[]exchange{
				{"a", segment(client, node, S), "host", "tcp " + client + " > " + node + " S"},
				{"host", segment(node, client, SA), "a", "tcp " + node + " > " + client + " SA"},
				{"a", segment(client, node, A), "host", "tcp " + client + " > " + node + " A"},
			},
			exchange{"a", segment(client, node, A), "host", "tcp " + client + " > " + node + " A"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, e := range c.before {
				w.exchange(e)
			}
			w.leads(port, picked(1, "10.244.1.11:8080"), false)
			w.exchange(c.then)
		})
	}
}

// TestDatagramsOverRestart: after a restart of the agent, datagrams still go to their flow's backend, even if other
// backends are there by now and another would be chosen: protocols on UDP, such as QUIC, have connections too
// (kubernetes/kubernetes#122740).
func TestDatagramsOverRestart(t *testing.T) {
	const client, vip = "10.244.1.10:1000", "10.96.0.1:80"
	there := exchange{"a", datagram(client, vip), "b", "udp " + client + " > 10.244.1.11:8080"}
	back := exchange{"b", datagram("10.244.1.11:8080", client), "a", "udp " + vip + " > " + client}
	memory := make([]byte, flow.Size(4096))
	w := newWorldOver(t, nil, memory)
	w.exchange(there)
	w.exchange(back)
	if err := w.path.Close(); err != nil {
		t.Fatal(err)
	}
	w = newWorldOver(t, nil, memory)
	w.leads(vip, picked(2, "10.244.2.10:8080"), false)
	w.exchange(back)
	w.exchange(there)
	w.exchange(exchange{"a", datagram("10.244.1.10:1001", vip), "link", "node-2 udp 10.244.1.10:1001 > 10.244.2.10:8080"})
}

// TestServiceChanges: when a Service gives up an address or port, or another Service gets it, new traffic there no
// longer reaches the old backend, even if that lives and serves elsewhere. Connections go on
// (kubernetes/kubernetes#126130).
func TestServiceChanges(t *testing.T) {
	const S, A, SA = packet.SYN, packet.ACK, packet.SYN | packet.ACK
	const client, vip = "10.244.1.10:1000", "10.96.0.1:80"
	unknown, other := packet.Choice{Kind: packet.UnknownPort}, picked(2, "10.244.2.10:8080")
	open := []exchange{
		{"a", segment(client, vip, S), "b", "tcp " + client + " > 10.244.1.11:8080 S"},
		{"b", segment("10.244.1.11:8080", client, SA), "a", "tcp " + vip + " > " + client + " SA"},
		{"a", segment(client, vip, A), "b", "tcp " + client + " > 10.244.1.11:8080 A"},
	}
	talk := []exchange{
		{"a", datagram(client, vip), "b", "udp " + client + " > 10.244.1.11:8080"},
		{"b", datagram("10.244.1.11:8080", client), "a", "udp " + vip + " > " + client},
	}
	for name, c := range map[string]struct {
		before []exchange
		now    packet.Choice
		packet netstacktest.Spec
		at     string
		wants  string
	}{
		"datagrams, the port is gone":      {talk, unknown, datagram(client, vip), "a", "icmp 3/3 10.96.0.1 > 10.244.1.10 about " + client + " > " + vip},
		"datagrams, the port is another's": {talk, other, datagram(client, vip), "link", "node-2 udp " + client + " > 10.244.2.10:8080"},
		"a SYN, the port is gone":          {open[:1], unknown, segment(client, vip, S), "a", "tcp " + vip + " > " + client + " RA"},
		"a SYN, the port is another's":     {open[:1], other, segment(client, vip, S), "link", "node-2 tcp " + client + " > 10.244.2.10:8080 S"},
		"a connection, the port is gone":   {open, unknown, segment(client, vip, A), "b", "tcp " + client + " > 10.244.1.11:8080 A"},
		"a connection, it is another's":    {open, other, segment(client, vip, A), "b", "tcp " + client + " > 10.244.1.11:8080 A"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, e := range c.before {
				w.exchange(e)
			}
			w.leads(vip, c.now, true)
			w.exchange(exchange{"a", c.packet, c.at, c.wants})
		})
	}
}
