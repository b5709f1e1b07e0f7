package netstack

import (
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// newExitWorld is newRoutedWorld with ranges outside that pods reach from their own addresses.
func newExitWorld(t *testing.T) *world { return newExitWorldOver(t, make([]byte, flow.Size(4096))) }

func newExitWorldOver(t *testing.T, memory []byte) *world {
	w := newRoutedWorldOver(t, memory)
	w.path.Detach("host")
	w.attach("host", HostTAP, "10.244.1.2", "fd00:10:244:1::2")
	w.config.DenyEgress = []Destination{{Range: netip.MustParsePrefix("192.0.2.66/32")}}
	w.set()
	w.path.SetExits(exit.New(exit.Config{Routed: addresstest.Prefixes("192.0.2.0/24", "2001:db8:d::/48")}))
	return w
}

func TestRoutedOut(t *testing.T) {
	const S, A, SA, R = packet.SYN, packet.ACK, packet.SYN | packet.ACK, packet.RST
	const pod, pod6, server, server6 = "10.244.1.10:1000", "[fd00:10:244:1::10]:1000", "192.0.2.1:443", "[2001:db8:d::1]:443"
	for name, steps := range map[string][]step{
		"a connection": {
			{"a", segment(pod, server, S), "host", "tcp 10.244.1.10:1000 > 192.0.2.1:443 S", 0},
			{"host", segment(server, pod, SA), "a", "tcp 192.0.2.1:443 > 10.244.1.10:1000 SA", 0},
			{"a", segment(pod, server, A), "host", "tcp 10.244.1.10:1000 > 192.0.2.1:443 A", 0},
			{"host", segment(server, pod, R), "a", "tcp 192.0.2.1:443 > 10.244.1.10:1000 R", 0},
		},
		"a connection, IPv6": {
			{"a", segment(pod6, server6, S), "host", "tcp [fd00:10:244:1::10]:1000 > [2001:db8:d::1]:443 S", 0},
			{"host", segment(server6, pod6, SA), "a", "tcp [2001:db8:d::1]:443 > [fd00:10:244:1::10]:1000 SA", 0},
		},
		"one that goes on with the next agent": {
			{"a", segment(pod, server, A), "host", "tcp 10.244.1.10:1000 > 192.0.2.1:443 A", 0},
			{"host", segment(server, pod, A), "a", "tcp 192.0.2.1:443 > 10.244.1.10:1000 A", 0},
		},
		"datagrams": {
			{"a", datagram(pod, server), "host", "udp 10.244.1.10:1000 > 192.0.2.1:443", 0},
			{"host", datagram(server, pod), "a", "udp 192.0.2.1:443 > 10.244.1.10:1000", 0},
		},
		"a ping": {
			{"a", echo("10.244.1.10:7", "192.0.2.1:0", 8), "host", "icmp 8 10.244.1.10 > 192.0.2.1 id 7", 0},
			{"host", echo("192.0.2.1:7", "10.244.1.10:0", 0), "a", "icmp 0 192.0.2.1 > 10.244.1.10 id 7", 0},
		},
		"a router outside says that it does not fit": {
			{"a", datagram(pod, server), "host", "udp 10.244.1.10:1000 > 192.0.2.1:443", 0},
			{"host", icmp("198.51.100.9", "10.244.1.10", 3, 4, datagram(pod, server).IP()), "a", "icmp 3/4 198.51.100.9 > 10.244.1.10 about 10.244.1.10:1000 > 192.0.2.1:443", 0},
		},
		"the host says so": {
			{"a", datagram(pod, server), "host", "udp 10.244.1.10:1000 > 192.0.2.1:443", 0},
			{"host", icmp("10.244.1.2", "10.244.1.10", 3, 1, datagram(pod, server).IP()), "a", "icmp 3/1 10.244.1.2 > 10.244.1.10 about 10.244.1.10:1000 > 192.0.2.1:443", 0},
		},
		"the pod says that nobody listens any more": {
			{"a", datagram(pod, server), "host", "udp 10.244.1.10:1000 > 192.0.2.1:443", 0},
			{"host", datagram(server, pod), "a", "udp 192.0.2.1:443 > 10.244.1.10:1000", 0},
			{"a", icmp("10.244.1.10", "192.0.2.1", 3, 3, datagram(server, pod).IP()), "host", "icmp 3/3 10.244.1.10 > 192.0.2.1 about 192.0.2.1:443 > 10.244.1.10:1000", 0},
		},
		"an error about nothing that was sent": {{"host", icmp("198.51.100.9", "10.244.1.10", 3, 4, datagram(pod, server).IP()), "", "", StrayError}},
		"who was not asked":                    {{"host", segment(server, pod, S), "", "", NotExposed}},
		"another port of who was asked": {
			{"a", datagram(pod, server), "host", "udp 10.244.1.10:1000 > 192.0.2.1:443", 0},
			{"host", datagram("192.0.2.1:444", pod), "", "", NotExposed},
		},
		"a process of the host":             {{"host", segment("10.244.1.2:1000", server, S), "host", "icmp 3/1 10.244.1.1 > 10.244.1.2 about 10.244.1.2:1000 > 192.0.2.1:443", NoRoute}},
		"the host sends the pod's back":     {{"host", segment(pod, server, S), "", "", Spoofed}},
		"another node's pod":                {{"node-2", segment("10.244.2.10:1000", server, S), "", "", NoRoute}},
		"another node's pod, encapsulated":  {{"node-2 encap", segment("10.244.2.10:1000", server, S), "", "", BadEncap}},
		"what pods may not dial":            {{"a", segment(pod, "192.0.2.66:443", S), "a", "tcp 192.0.2.66:443 > 10.244.1.10:1000 RA", EgressDenied}},
		"an address of the cluster's range": {{"a", segment(pod, "10.244.77.1:443", S), "a", "icmp 3/1 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 10.244.77.1:443", NoRoute}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newExitWorld(t)
			w.take(steps)
		})
	}
}

// The fragments of a datagram leave by the way of its first one, and those of the answer arrive.
func TestRoutedOutFragments(t *testing.T) {
	w := newExitWorld(t)
	first := datagram("10.244.1.10:1000", "192.0.2.1:53")
	first.FragFirst, first.ID, first.Payload = true, 7, make([]byte, 8)
	later := first
	later.FragFirst, later.FragAt = false, 16
	w.exchange(exchange{"a", first, "host", "udp 10.244.1.10:1000 > 192.0.2.1:53"})
	w.from("a", later)
	w.expect("host", "udp 10.244.1.10:0 > 192.0.2.1:0")
	back := datagram("192.0.2.1:53", "10.244.1.10:1000")
	back.FragFirst, back.ID, back.Payload = true, 8, make([]byte, 8)
	more := back
	more.FragFirst, more.FragAt = false, 16
	w.exchange(exchange{"host", back, "a", "udp 192.0.2.1:53 > 10.244.1.10:1000"})
	w.from("host", more)
	w.expect("a", "udp 192.0.2.1:0 > 10.244.1.10:0")
}

// Without a host TAP a packet that has to leave by it is refused, and nothing leaves over a socket instead.
func TestRoutedOutWithoutHostTAP(t *testing.T) {
	w := newExitWorld(t)
	w.path.Detach("host")
	w.from("a", segment("10.244.1.10:1000", "192.0.2.1:443", packet.SYN))
	w.expect("a", "icmp 3/13 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 192.0.2.1:443")
	w.dropped(NoExit)
	if _, found := find(w, "10.244.1.10:1000", "192.0.2.1:443"); found {
		t.Error("a flow began")
	}
}

func find(w *world, src, dst string) (h flow.Hit, found bool) {
	found = w.path.flows.Peek(tupleOf(src, dst), &h)
	return h, found
}

// What changes in the middle ends what began the other way, in both directions, and what begins after that goes right.
func TestExitsChange(t *testing.T) {
	const pod, server = "10.244.1.10:1000", "192.0.2.1:443"
	w := newExitWorld(t)
	table := w.path.exits.Load()
	w.path.SetExits(nil)
	// A connection that a relay carries: only its flow matters here.
	t0 := tupleOf(pod, server)
	e := flow.Entry{Orig: *t0, Reply: t0.Reverse(), Segment: packet.Segment{Flags: packet.SYN}}
	if _, r := w.path.flows.Insert(&e); r != flow.Inserted {
		t.Fatal(r)
	}
	w.path.SetExits(table)
	w.exchange(exchange{"a", segment(pod, server, packet.ACK), "a", "tcp 192.0.2.1:443 > 10.244.1.10:1000 R"})
	w.dropped(NoExit)
	w.exchange(exchange{"a", segment(pod, server, packet.SYN), "host", "tcp 10.244.1.10:1000 > 192.0.2.1:443 S"})
	w.exchange(exchange{"host", segment(server, pod, packet.SYN|packet.ACK), "a", "tcp 192.0.2.1:443 > 10.244.1.10:1000 SA"})
	// The range is denied: the next packet is refused, though its connection was there.
	w.config.DenyEgress = append(w.config.DenyEgress, Destination{Range: netip.MustParsePrefix("192.0.2.1/32")})
	w.set()
	w.from("a", segment(pod, server, packet.ACK))
	w.dropped(EgressDenied)
	if _, found := find(w, pod, server); found {
		t.Error("the flow to an address that is denied goes on")
	}
}

// A packet of a known flow that leaves by the host TAP costs no allocation.
func TestRoutedOutAllocatesNothing(t *testing.T) {
	w, _ := hotNode(t)
	host := &sink{}
	if err := w.path.Attach(AttachmentConfig{Name: "host", Kind: HostTAP, MAC: packet.MAC{2, 2}, Addrs: addresstest.Addrs("10.244.1.2")}, host); err != nil {
		t.Fatal(err)
	}
	w.path.SetExits(exit.New(exit.Config{Routed: addresstest.Prefixes("192.0.2.0/24")}))
	frame, buf := datagram(podA+":1", "192.0.2.1:2").Frame(w.from.MAC, packet.MAC{2, 0x54, 0x41, 0x50, 0, 1}), make([]byte, packet.MaxFrame)
	if n := testing.AllocsPerRun(100, func() { buf = w.fromTAP(buf[:copy(buf[:cap(buf)], frame)]) }); n != 0 || host.frames != 101 {
		t.Errorf("%v allocations, %d frames left: %+v", n, host.frames, w.path.Stats())
	}
}

// A known flow whose host TAP has gone is refused as a new one is, and so is a new one of a family of which the host
// TAP has no address.
func TestRoutedOutLosesTheHostTAP(t *testing.T) {
	const pod, server, pod6, server6 = "10.244.1.10:1000", "192.0.2.1:53", "[fd00:10:244:1::10]:1000", "[2001:db8:d::1]:53"
	w := newExitWorld(t)
	w.exchange(exchange{"a", datagram(pod, server), "host", "udp 10.244.1.10:1000 > 192.0.2.1:53"})
	w.path.Detach("host")
	w.exchange(exchange{"a", datagram(pod, server), "a", "icmp 3/13 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 192.0.2.1:53"})
	w.dropped(NoExit)
	w.attach("host", HostTAP, "10.244.1.2")
	w.exchange(exchange{"a", datagram(pod, server), "host", "udp 10.244.1.10:1000 > 192.0.2.1:53"})
	w.exchange(exchange{"a", datagram(pod6, server6), "a", "icmp 1/1 fd00:10:244:1::1 > fd00:10:244:1::10 about [fd00:10:244:1::10]:1000 > [2001:db8:d::1]:53"})
	w.silent()
}
