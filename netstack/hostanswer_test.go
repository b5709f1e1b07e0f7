package netstack

import (
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// TestHostAnswers: an answer that the host sends from another of its addresses leaves from the address that was asked,
// and nobody else's does.
func TestHostAnswers(t *testing.T) {
	const (
		pod, host, node, other = "10.244.1.10:999", "10.244.1.2:53", "172.31.0.11:53", "192.168.7.1:53"
		far                    = "10.244.2.10:999"
		pod6, host6, node6     = "[fd00:10:244:1::10]:999", "[fd00:10:244:1::2]:53", "[2001:db8::11]:53"
	)
	asks := func(from, to string) exchange {
		who := map[string]string{pod: "a", pod6: "a", far: "node-2"}[from]
		return exchange{who, datagram(from, to), "host", "udp " + from + " > " + to}
	}
	for name, list := range map[string][]exchange{
		"from the host TAP's address": {
			asks(pod, node), {"host", datagram(host, pod), "a", "udp " + node + " > " + pod},
			asks(pod, node), {"host", datagram(host, pod), "a", "udp " + node + " > " + pod},
			{"host", datagram(node, pod), "a", "udp " + node + " > " + pod},
		},
		"to a pod of another node": {asks(far, node), {"host", datagram(host, far), "link", "node-2 udp " + node + " > " + far}},
		"of a Service": {
			{"a", datagram(pod, "10.96.0.20:53"), "host", "udp " + pod + " > 172.31.0.11:5353"},
			{"host", datagram("10.244.1.2:5353", pod), "a", "udp 10.96.0.20:53 > " + pod},
		},
		"IPv6":                                   {asks(pod6, node6), {"host", datagram(host6, pod6), "a", "udp " + node6 + " > " + pod6}},
		"from the node's address":                {asks(pod, host), {"host", datagram(node, pod), "a", "udp " + host + " > " + pod}},
		"of an address that only the host has":   {asks(pod, other), {"host", datagram(host, pod), "a", "udp " + other + " > " + pod}},
		"from an address that only the host has": {asks(pod, node), {"host", datagram(other, pod), "a", "udp " + node + " > " + pod}},
		"two addresses are asked": {
			asks(pod, node), {"host", datagram(host, pod), "a", "udp " + node + " > " + pod},
			asks(pod, other), {"host", datagram(host, pod), "a", "udp " + other + " > " + pod},
		},
		"nobody asked":           {{"host", datagram(host, pod), "a", "udp " + host + " > " + pod}},
		"another port was asked": {asks(pod, "172.31.0.11:54"), {"host", datagram(host, pod), "a", "udp " + host + " > " + pod}},
		"another pod asked":      {asks(pod, node), {"host", datagram(host, "10.244.1.11:999"), "b", "udp " + host + " > 10.244.1.11:999"}},
		"a conversation of the host's own": {
			{"host", datagram(host, pod), "a", "udp " + host + " > " + pod}, {"a", datagram(pod, host), "host", "udp " + pod + " > " + host},
			asks(pod, node), {"host", datagram(host, pod), "a", "udp " + host + " > " + pod},
		},
		"the host spoke before it was asked": {
			{"host", datagram(host, pod), "a", "udp " + host + " > " + pod},
			asks(pod, node), {"host", datagram(host, pod), "a", "udp " + node + " > " + pod},
		},
		"not TCP": {
			{"a", segment(pod, node, packet.SYN), "host", "tcp " + pod + " > " + node + " S"},
			{"host", segment(host, pod, packet.SYN|packet.ACK), "a", "tcp " + host + " > " + pod + " SA"},
		},
		"not a pod's": {asks(pod, node), {"b", datagram("10.244.1.11:53", pod), "a", "udp 10.244.1.11:53 > " + pod}},
		"not another node's": {
			asks(pod, node), {"node-2", datagram("172.31.0.12:53", pod), "a", "udp 172.31.0.12:53 > " + pod},
			{"node-2", datagram("10.244.2.2:53", pod), "a", "udp 10.244.2.2:53 > " + pod},
		},
		"an error about the answer reaches the server": {
			asks(pod, node), {"host", datagram(host, pod), "a", "udp " + node + " > " + pod},
			{"a", netstacktest.Spec{Src: ap("10.244.1.10:0"), Dst: ap("172.31.0.11:0"), Proto: packet.ICMPv4, ICMPType: 3, ICMPCode: 3, Payload: datagram(node, pod).IP()},
				"host", "icmp 3/3 10.244.1.10 > 172.31.0.11 about " + node + " > " + pod},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := hostWorld(t)
			for _, e := range list {
				w.exchange(e)
			}
		})
	}
	// A peer that claims to be the host is refused, as ever.
	w := hostWorld(t)
	w.exchange(asks(pod, node))
	w.from("node-2", datagram(host, pod))
	w.dropped(SpoofedPeer)
}

// hostWorld is a world whose host has further addresses, and serves a Service.
func hostWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.config.NodeAddrs = addresstest.Addrs("172.31.0.11", "2001:db8::11")
	w.config.HostAddrs = addresstest.Addrs("172.31.0.11", "192.168.7.1", "10.244.1.2")
	w.balancer.picks[ap("10.96.0.20:53")] = picked(7, "172.31.0.11:5353")
	w.balancer.states[7] = packet.BackendReady
	w.set()
	return w
}

// The flows of answers that an earlier agent let leave from the wrong address go on in the flow memory. They end when
// the client asks again.
func TestHostAnswersOverUpgrade(t *testing.T) {
	memory := make([]byte, flow.Size(64))
	table, err := flow.Open(memory, flow.Options{Clock: func() uint32 { return 1000 }})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []netstacktest.Spec{datagram("10.244.1.10:999", "172.31.0.11:53"), datagram("10.244.1.2:53", "10.244.1.10:999")} {
		var p packet.Packet
		if p.ParseIP(s.IP()) != packet.Good {
			t.Fatal("no packet")
		}
		if _, result := table.Insert(&flow.Entry{Orig: p.Tuple, Reply: p.Tuple.Reverse()}); result != flow.Inserted {
			t.Fatal(result)
		}
	}
	w := newWorldOver(t, nil, memory)
	w.exchange(exchange{"a", datagram("10.244.1.10:999", "172.31.0.11:53"), "host", "udp 10.244.1.10:999 > 172.31.0.11:53"})
	w.exchange(exchange{"host", datagram("10.244.1.2:53", "10.244.1.10:999"), "a", "udp 172.31.0.11:53 > 10.244.1.10:999"})
}

// All fragments of an answer leave from the address that was asked, in whatever order they come.
func TestHostAnswersInFragments(t *testing.T) {
	for name, c := range map[string]struct{ client, asked, from string }{
		"IPv4": {"10.244.1.10:999", "172.31.0.11:53", "10.244.1.2:53"},
		"IPv6": {"[fd00:10:244:1::10]:999", "[2001:db8::11]:53", "[fd00:10:244:1::2]:53"},
	} {
		for _, backwards := range []bool{false, true} {
			w := hostWorld(t)
			w.exchange(exchange{"a", datagram(c.client, c.asked), "host", "udp " + c.client + " > " + c.asked})
			all := pieces(t, large(c.from, c.client, 77))
			for i := range all {
				if backwards {
					i = len(all) - 1 - i
				}
				w.fromIP("host", all[i])
			}
			for range all {
				w.until(func() bool { return len(w.devices["a"].Frames()) > 0 })
				var p packet.Packet
				if p.ParseFrame(<-w.devices["a"].Frames()) != packet.Good || p.Tuple.Src != packet.AddrFrom(ap(c.asked).Addr()) {
					t.Errorf("%s, backwards %v: a fragment from %s, want %s", name, backwards, p.Tuple.Src, c.asked)
				}
			}
		}
	}
}

// The Policy and the Observer are told of the flow of the question, not of an address that it does not have.
func TestHostAnswersAreOfTheFlow(t *testing.T) {
	w := hostWorld(t)
	var judged []Flow
	w.policy = policyFunc(func(f *Flow) Ruling { judged = append(judged, *f); return Ruling{} })
	w.set()
	w.exchange(exchange{"a", datagram("10.244.1.10:999", "10.96.0.20:53"), "host", "udp 10.244.1.10:999 > 172.31.0.11:5353"})
	w.config.MTU-- // a new generation
	w.set()
	w.exchange(exchange{"host", datagram("10.244.1.2:5353", "10.244.1.10:999"), "a", "udp 10.96.0.20:53 > 10.244.1.10:999"})
	if len(judged) != 2 || !judged[0].Begins || judged[1].Begins {
		t.Fatalf("judged are %+v", judged)
	}
	if judged[1].Begins = true; judged[0] != judged[1] {
		t.Errorf("judged are %+v", judged)
	}
}

// policyFunc is a Policy.
type policyFunc func(*Flow) Ruling

func (f policyFunc) Judge(flow *Flow) Ruling { return f(flow) }

func TestHostAnswersAllocateNothing(t *testing.T) {
	w, _ := hotNode(t)
	s := w.path.snapshot.Load()
	s.balancer = &hotBalancer{}
	host := &Attachment{AttachmentConfig: AttachmentConfig{Name: "host", Kind: HostTAP, MAC: w.from.MAC}, dev: w.from.dev}
	pod := w.from
	send := func(from *Attachment, src, dst string) func() {
		frame, buf := datagram(src, dst).Frame(from.MAC, tap.RouterMAC), make([]byte, packet.MaxFrame)
		return func() {
			w.from = from
			n := copy(buf[:cap(buf)], frame)
			buf = w.fromTAP(buf[:n])
		}
	}
	node := s.NodeAddrs[0].String()
	send(pod, "10.244.1.10:999", node+":53")()
	answer := send(host, "10.244.1.2:53", "10.244.1.10:999")
	if n := testing.AllocsPerRun(200, answer); n != 0 {
		t.Errorf("%v allocations per answer", n)
	}
	if n := w.path.flows.Stats().Len; n != 1 {
		t.Errorf("%d flows, want that of the question: %v", n, w.path.Stats())
	}
}

// A host may have any number of addresses. Those that are looked at for each new question are few, the Node's first.
func TestOwnAddressesAreBounded(t *testing.T) {
	c := Config{NodeAddrs: addresstest.Addrs("192.0.2.1", "2001:db8::1")}
	for i := range 200 {
		c.HostAddrs = append(c.HostAddrs, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
	}
	s := compile(c, nil, nil, 1)
	if len(s.own) != maxOwnAddrs || s.own[0] != packet.AddrFrom(c.NodeAddrs[0]) || s.own[1] != packet.AddrFrom(c.NodeAddrs[1]) {
		t.Errorf("%d addresses: %v", len(s.own), s.own)
	}
}
