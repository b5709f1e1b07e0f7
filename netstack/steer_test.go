package netstack

import (
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

const node3 uint64 = 0x3333333333333333

// newSteering is a world with a third node, in which connections that a Service led to leaving go to target.
func newSteering(t *testing.T, leaving, target string) *world {
	w := newWorld(t)
	w.config.Peers = append(w.config.Peers, PeerRoute{
		ID: node3, Name: "node-3", PodCIDRs: addresstest.Prefixes("10.244.3.0/24"), Encap: true, SendsPartial: true,
	})
	w.balancer.picks[ap("10.96.0.99:80")] = picked(9, leaving) // so that leaving is an endpoint
	w.balancer.states[1], w.balancer.states[9] = packet.BackendReady, packet.BackendReady
	w.path.steer = func(to *packet.Tuple, _ bool) packet.Choice {
		if (packet.Endpoint{Addr: to.Dst, Port: to.DstPort}).AddrPort() == ap(leaving) {
			return picked(1, target)
		}
		return packet.Choice{}
	}
	w.set()
	return w
}

// marked returns the segment as another node sends it that has translated it for a Service.
func marked(t *testing.T, s netstacktest.Spec) []byte {
	var p packet.Packet
	if p.ParseIP(s.IP()) != packet.Good {
		t.Fatal("it cannot be parsed")
	}
	p.MarkService()
	return p.IP
}

// TestMarksOfServices: SYNs that this node leads to another node for a Service are marked, others are not.
func TestMarksOfServices(t *testing.T) {
	for _, c := range []struct {
		what, from string
		spec       netstacktest.Spec
		want       bool
	}{
		{"a Service's", "a", segment("10.244.1.10:4000", "10.96.0.2:80", packet.SYN), true},
		{"a Service's, by a process of the host", "host", segment("10.244.1.2:4000", "10.96.0.2:80", packet.SYN), true},
		{"a pod's own", "a", segment("10.244.1.10:4000", "10.244.2.10:8080", packet.SYN), false},
		{"later segments", "a", segment("10.244.1.10:4000", "10.96.0.2:80", packet.ACK), false},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld(t)
			w.from(c.from, c.spec)
			s := <-w.link.Sent()
			var p packet.Packet
			if p.ParseIP(s.Packets[0]) != packet.Good || p.Tuple.Dst != packet.AddrFrom(ap("10.244.2.10:8080").Addr()) {
				t.Fatalf("the link got %v", p.Tuple)
			}
			if got := p.TakeServiceMark(); got != c.want {
				t.Errorf("marked is %v, want %v", got, c.want)
			}
		})
	}
}

// TestSteerHere: a connection to an endpoint that leaves goes to another pod of this node, which sees the client. The
// client sees the endpoint that it knows.
func TestSteerHere(t *testing.T) {
	w := newSteering(t, "10.244.1.77:8080", "10.244.1.11:8080") // .77 has gone already
	w.path.FromLink(node2, [][]byte{marked(t, segment("10.244.2.20:4000", "10.244.1.77:8080", packet.SYN))})
	w.expect("b", "tcp 10.244.2.20:4000 > 10.244.1.11:8080 S")
	w.from("b", segment("10.244.1.11:8080", "10.244.2.20:4000", packet.SYN|packet.ACK))
	w.expect("link", "node-2 tcp 10.244.1.77:8080 > 10.244.2.20:4000 SA")
	w.from("node-2", segment("10.244.2.20:4000", "10.244.1.77:8080", packet.ACK))
	w.expect("b", "tcp 10.244.2.20:4000 > 10.244.1.11:8080 A")
	// From a client of node 2's sockets, by IP-in-IP, which needs no mark.
	w.from("node-2 encap", segment("198.51.100.7:4000", "10.244.1.77:8080", packet.SYN))
	w.expect("b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 S")
	w.from("b", segment("10.244.1.11:8080", "198.51.100.7:4000", packet.SYN|packet.ACK))
	w.expect("link", "node-2 encap 10.244.1.1 > 10.244.2.1: tcp 10.244.1.77:8080 > 198.51.100.7:4000 SA")
	w.silent()
}

// TestSteerWhereItMay: a connection that may not go where it would be steered goes to the endpoint that leaves, that of
// a client outside, too.
func TestSteerWhereItMay(t *testing.T) {
	w := newSteering(t, "10.244.1.11:8080", "10.244.3.30:8080")
	w.policy = policyFunc(func(f *Flow) Ruling {
		if f.To.Dst == packet.AddrFrom(ap("10.244.3.30:8080").Addr()) {
			return Ruling{Refuse, 1}
		}
		return Ruling{}
	})
	w.set()
	w.path.FromLink(node2, [][]byte{marked(t, segment("10.244.2.20:4000", "10.244.1.11:8080", packet.SYN))})
	w.expect("b", "tcp 10.244.2.20:4000 > 10.244.1.11:8080 S")
	w.from("b", segment("10.244.1.11:8080", "10.244.2.20:4000", packet.SYN|packet.ACK))
	w.expect("link", "node-2 tcp 10.244.1.11:8080 > 10.244.2.20:4000 SA")
	w.from("node-2 encap", segment("198.51.100.7:4000", "10.244.1.11:8080", packet.SYN))
	w.expect("b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 S")
	w.silent()
	// Nor may it go there: it is refused as what was not steered.
	w.policy = policyFunc(func(*Flow) Ruling { return Ruling{Refuse, 1} })
	w.set()
	w.path.FromLink(node2, [][]byte{marked(t, segment("10.244.2.20:4001", "10.244.1.11:8080", packet.SYN))})
	w.dropped(Denied)
}

// TestSteerToThirdNode: where no pod of this node can take it, the connection goes on to a third node from this node's
// own address, unmarked, and answers come back by this node.
func TestSteerToThirdNode(t *testing.T) {
	w := newSteering(t, "10.244.1.11:8080", "10.244.3.30:8080")
	w.path.FromLink(node2, [][]byte{marked(t, segment("10.244.2.20:4000", "10.244.1.11:8080", packet.SYN))})
	s := <-w.link.Sent()
	var p packet.Packet
	if p.ParseIP(s.Packets[0]) != packet.Good || s.Peer != node3 || p.TakeServiceMark() {
		t.Fatalf("%v went to %x, marked is %v", p.Tuple, s.Peer, p.TakeServiceMark())
	}
	if got, want := describe(t, &p), "tcp 10.244.1.1:4000 > 10.244.3.30:8080 S"; got != want {
		t.Fatalf("node 3 got %s, want %s", got, want)
	}
	w.path.FromLink(node3, [][]byte{segment("10.244.3.30:8080", "10.244.1.1:4000", packet.SYN|packet.ACK).IP()})
	w.expect("link", "node-2 tcp 10.244.1.11:8080 > 10.244.2.20:4000 SA")
	w.silent()
}

// TestNotSteered: what a Service has not led here, or what is not the beginning of a connection, goes where it goes. So
// does what comes from another node's stack without a mark, as a connection does that that node has steered.
func TestNotSteered(t *testing.T) {
	for what, ip := range map[string][]byte{
		"a SYN to the pod itself":     segment("10.244.2.20:4000", "10.244.1.11:8080", packet.SYN).IP(),
		"a later segment, marked":     marked(t, segment("10.244.2.20:4000", "10.244.1.11:8080", packet.ACK)),
		"a SYN that was steered here": segment("10.244.2.1:4000", "10.244.1.11:8080", packet.SYN).IP(),
		"a datagram":                  datagram("10.244.2.20:4000", "10.244.1.11:8080").IP(),
	} {
		t.Run(what, func(t *testing.T) {
			w := newSteering(t, "10.244.1.11:8080", "10.244.1.10:8080")
			w.path.FromLink(node2, [][]byte{ip})
			select {
			case <-w.devices["b"].Frames():
			case <-w.devices["a"].Frames():
				t.Error("it was steered")
			}
			w.silent()
		})
	}
}

// TestPeersOfPeers: nothing else goes from one peer to another.
func TestPeersOfPeers(t *testing.T) {
	w := newSteering(t, "10.244.1.11:8080", "10.244.3.30:8080")
	w.path.FromLink(node2, [][]byte{marked(t, segment("10.244.2.20:4000", "10.244.3.30:8080", packet.SYN))})
	w.hasDropped(NoRoute, 1)
	w.silent()
}

func TestSteeringAllocatesNothing(t *testing.T) {
	w, _ := hotNode(t)
	w.path.steer = func(*packet.Tuple, bool) packet.Choice { return picked(1, "10.244.1.11:8080") }
	w.path.snapshot.Load().balancer = &hotBalancer{}
	syn, reset := marked(t, segment("10.244.2.20:4000", "10.244.1.10:8080", packet.SYN)), segment("10.244.2.20:4000", "10.244.1.10:8080", packet.RST|packet.ACK).IP()
	batch := [][]byte{make([]byte, len(syn)), make([]byte, len(reset))}
	if n := testing.AllocsPerRun(100, func() {
		copy(batch[0], syn)
		copy(batch[1], reset)
		w.fromLink(node2, batch[:1])
		w.fromLink(node2, batch[1:])
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if d := w.verdicts[Dropped].Load(); d != 0 {
		t.Errorf("%d packets were dropped: %v", d, w.path.Stats())
	}
}
