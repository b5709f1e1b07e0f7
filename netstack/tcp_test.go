package netstack

import (
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
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
				case <-time.After(patience):
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
