package netstack

import (
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

const (
	syn, ack, synAck, fin, rst = packet.SYN, packet.ACK, packet.SYN | packet.ACK, packet.FIN | packet.ACK, packet.RST
	clientA                    = "10.244.1.10:1000"
	atB                        = "10.244.1.11:8080"
	vipOfB                     = "10.96.0.1:80"
)

// opened lists the packets of a handshake of pod a with pod b through a Service.
func opened() []exchange {
	return []exchange{
		{"a", segment(clientA, vipOfB, syn), "b", "tcp " + clientA + " > " + atB + " S"},
		{"b", segment(atB, clientA, synAck), "a", "tcp " + vipOfB + " > " + clientA + " SA"},
		{"a", segment(clientA, vipOfB, ack), "b", "tcp " + clientA + " > " + atB + " A"},
	}
}

// seq returns a segment with other sequence numbers.
func seq(s netstacktest.Spec, seq, ack uint32) netstacktest.Spec {
	s.Seq, s.Ack = seq, ack
	return s
}

// TestOutOfWindow: a segment outside the window is translated like any other. If it passed untranslated, it would reach
// the client from an unknown address, and the client would reset the connection (kubernetes/kubernetes#74839).
func TestOutOfWindow(t *testing.T) {
	w := newWorld(t)
	for _, e := range opened() {
		w.exchange(e)
	}
	for _, n := range []uint32{1, 1 << 31, 1<<32 - 100000, 77} {
		w.exchange(exchange{"b", seq(segment(atB, clientA, ack), n, ^n), "a", "tcp " + vipOfB + " > " + clientA + " A"})
		w.exchange(exchange{"a", seq(segment(clientA, vipOfB, ack), ^n, n), "b", "tcp " + clientA + " > " + atB + " A"})
	}
	// The receiver judges a reset outside the window, and the connection goes on (projectcalico/calico#9605).
	w.exchange(exchange{"b", seq(segment(atB, clientA, rst), 1<<31, 0), "a", "tcp " + vipOfB + " > " + clientA + " R"})
	w.exchange(exchange{"a", segment(clientA, vipOfB, ack), "b", "tcp " + clientA + " > " + atB + " A"})
	w.exchange(exchange{"b", segment(atB, clientA, ack), "a", "tcp " + vipOfB + " > " + clientA + " A"})
}

// TestResetInVainThenSilence: a connection outlives a reset that its receiver drops, also when nothing is said for a
// minute and a half after it (projectcalico/calico#13880).
func TestResetInVainThenSilence(t *testing.T) {
	for name, reset := range map[string]exchange{
		"of the client": {"a", seq(segment(clientA, vipOfB, rst), 1<<31, 0), "b", "tcp " + clientA + " > " + atB + " R"},
		"of the server": {"b", seq(segment(atB, clientA, rst), 1<<31, 0), "a", "tcp " + vipOfB + " > " + clientA + " R"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, e := range append(opened(), reset) {
				w.exchange(e)
			}
			w.leads(vipOfB, picked(2, "10.244.2.10:8080"), false) // new connections go elsewhere
			w.clock.Add(90)
			for range 60 {
				w.path.flows.Sweep()
			}
			w.exchange(exchange{"b", segment(atB, clientA, ack), "a", "tcp " + vipOfB + " > " + clientA + " A"})
			w.exchange(exchange{"a", segment(clientA, vipOfB, ack), "b", "tcp " + clientA + " > " + atB + " A"})
			w.exchange(exchange{"b", segment(atB, clientA, ack), "a", "tcp " + vipOfB + " > " + clientA + " A"})
			w.clock.Add(3600)
			for range 60 {
				w.path.flows.Sweep()
			}
			w.exchange(exchange{"b", segment(atB, clientA, ack), "a", "tcp " + vipOfB + " > " + clientA + " A"})
		})
	}
}

// TestRepeatedSYN: a SYN that is repeated because its answer was lost goes to the backend that got the first one, even
// if there are other backends by now and another would be chosen (projectcalico/calico#4290).
func TestRepeatedSYN(t *testing.T) {
	for name, before := range map[string][]exchange{"not answered": opened()[:1], "the answer was lost": opened()[:2]} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, e := range before {
				w.exchange(e)
			}
			w.leads(vipOfB, picked(2, "10.244.2.10:8080"), false)
			w.exchange(opened()[0])
			w.exchange(opened()[1])
		})
	}
}

// TestPortUsedAgain: a client that uses its port again after a connection ended gets a new connection at once, with
// whichever backend is chosen then. There is no pause, and the old backend, which leaves the Service, gets nothing
// (kubernetes/kubernetes#81775, cloudnativelabs/kube-router#544).
func TestPortUsedAgain(t *testing.T) {
	for name, end := range map[string][]exchange{
		"closed by the client": {
			{"a", segment(clientA, vipOfB, fin), "b", "tcp " + clientA + " > " + atB + " FA"},
			{"b", segment(atB, clientA, fin), "a", "tcp " + vipOfB + " > " + clientA + " FA"},
			{"a", segment(clientA, vipOfB, ack), "b", "tcp " + clientA + " > " + atB + " A"},
		},
		"closed by the server": {
			{"b", segment(atB, clientA, fin), "a", "tcp " + vipOfB + " > " + clientA + " FA"},
			{"a", segment(clientA, vipOfB, fin), "b", "tcp " + clientA + " > " + atB + " FA"},
			{"b", segment(atB, clientA, ack), "a", "tcp " + vipOfB + " > " + clientA + " A"},
		},
		"reset": {{"b", segment(atB, clientA, rst|ack), "a", "tcp " + vipOfB + " > " + clientA + " RA"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, e := range append(opened(), end...) {
				w.exchange(e)
			}
			w.balancer.states[1] = packet.BackendDraining
			w.leads(vipOfB, picked(2, "10.244.2.10:8080"), false)
			w.exchange(exchange{"a", segment(clientA, vipOfB, syn), "link", "node-2 tcp " + clientA + " > 10.244.2.10:8080 S"})
			w.exchange(exchange{"node-2", segment("10.244.2.10:8080", clientA, synAck), "a", "tcp " + vipOfB + " > " + clientA + " SA"})
		})
	}
}

// TestPortOfLostConnection: a client that uses the port of a connection again whose end it never saw goes where new
// connections go, also when packets of the old one were let through since the backend left (cilium/cilium#11742).
func TestPortOfLostConnection(t *testing.T) {
	const vip, far, node = "10.96.0.2:80", "10.244.2.10:8080", "172.31.0.11:30053"
	gone := func(w *world) {
		w.leads(vip, picked(1, atB), false)
		delete(w.balancer.states, 2)
		w.set()
	}
	opened := []exchange{
		{"a", segment(clientA, vip, syn), "link", "node-2 tcp " + clientA + " > " + far + " S"},
		{"node-2", segment(far, clientA, synAck), "a", "tcp " + vip + " > " + clientA + " SA"},
		{"a", segment(clientA, vip, ack), "link", "node-2 tcp " + clientA + " > " + far + " A"},
	}
	vacant := icmp("10.244.2.1", "10.244.1.10", 3, 1, segment(clientA, far, syn).IP())
	for name, c := range map[string]struct {
		before []exchange
		change func(*world)
		since  []exchange
		to     string
	}{
		"an established connection": {opened, gone, nil, vip},
		"the same, packets went on": {opened, gone, opened[2:], vip},
		"the answer was lost":       {opened[:2], gone, nil, vip},
		"nobody is there": {
			append(opened[:1:1], exchange{"node-2", vacant, "a", "icmp 3/1 10.244.2.1 > 10.244.1.10 about " + clientA + " > " + vip}),
			gone, nil, vip,
		},
		"the backend leaves": {opened, func(w *world) {
			w.leads(vip, picked(1, atB), false)
			w.balancer.states[2] = packet.BackendDraining
		}, nil, vip},
		"no Service had the address": {[]exchange{
			{"a", segment(clientA, node, syn), "host", "tcp " + clientA + " > " + node + " S"},
			{"host", segment(node, clientA, synAck), "a", "tcp " + node + " > " + clientA + " SA"},
			{"a", segment(clientA, node, ack), "host", "tcp " + clientA + " > " + node + " A"},
		}, func(w *world) { w.leads(node, picked(1, atB), false) }, nil, node},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, e := range c.before {
				w.exchange(e)
			}
			c.change(w)
			for _, e := range c.since {
				w.exchange(e)
			}
			w.exchange(exchange{"a", segment(clientA, c.to, syn), "b", "tcp " + clientA + " > " + atB + " S"})
			w.exchange(exchange{"b", segment(atB, clientA, synAck), "a", "tcp " + c.to + " > " + clientA + " SA"})
		})
	}
}

// TestServiceAndEndpointFromOnePort: a client connects from one port to a Service and to the endpoint that the Service
// leads to, in either order. Both connections work, and the endpoint can tell them apart (kubernetes/kubernetes#90042).
func TestServiceAndEndpointFromOnePort(t *testing.T) {
	for name, order := range map[string][2]string{"the Service first": {vipOfB, atB}, "the endpoint first": {atB, vipOfB}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var from [2]string
			for i, to := range order {
				w.from("a", segment(clientA, to, syn))
				var p packet.Packet
				select {
				case f := <-w.devices["b"].Frames():
					p.ParseFrame(f)
				case <-time.After(await.Patience):
					t.Fatalf("the connection to %s did not arrive", to)
				}
				from[i] = packet.Endpoint{Addr: p.Tuple.Src, Port: p.Tuple.SrcPort}.AddrPort().String()
			}
			if from[0] != clientA || from[1] == clientA {
				t.Fatalf("connections arrived from %s and %s", from[0], from[1])
			}
			for i, to := range order {
				w.exchange(exchange{"b", segment(atB, from[i], synAck), "a", "tcp " + to + " > " + clientA + " SA"})
			}
		})
	}
}
