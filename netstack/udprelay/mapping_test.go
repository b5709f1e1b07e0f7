package udprelay

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// One address and port of a pod has one port outside, whatever its destinations (RFC 4787 REQ-1). Through it only these
// destinations reach the pod.
func TestEndpointIndependentMapping(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t, Options{})
			one, two, stranger := server(t, f.outside), server(t, f.outside), server(t, f.outside)
			spec := netstacktest.Spec{Src: netip.MustParseAddrPort(f.pod), Payload: []byte("who am I?")}
			spec.Dst = at(one)
			first := from(t, spec, 0)
			w.send(first)
			_, client := hear(t, one)
			if _, err := two.WriteToUDPAddrPort([]byte("too early"), client); err != nil {
				t.Fatal(err)
			}
			for w.relay.Stats().Strange == 0 {
				time.Sleep(time.Millisecond)
			}
			spec.Dst = at(two)
			second := from(t, spec, 0)
			w.send(second)
			if _, again := hear(t, two); again != client {
				t.Fatalf("two servers see the pod as %s and %s", client, again)
			}
			if n := w.relay.Stats(); n.Sockets.Held != 1 || n.Conversations.Held != 2 {
				t.Errorf("%d sockets, %d conversations", n.Sockets.Held, n.Conversations.Held)
			}
			// Answers arrive from both servers, each with its own address, and nothing from others arrives in between.
			for i := range 10 {
				msg := fmt.Appendf(nil, "answer %d", i)
				for _, c := range []struct {
					from interface {
						WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
					}
					tuple packet.Tuple
				}{{stranger, packet.Tuple{}}, {one, first.Tuple.Reverse()}, {two, second.Tuple.Reverse()}} {
					if _, err := c.from.WriteToUDPAddrPort(msg, client); err != nil {
						t.Fatal(err)
					}
					if c.tuple == (packet.Tuple{}) {
						continue
					}
					if got := w.datagrams(c.tuple, 1); string(got[0]) != string(msg) {
						t.Fatalf("%q came, want %q", got[0], msg)
					}
				}
			}
			if n := w.relay.Stats().Strange; n != 11 {
				t.Errorf("%d strange datagrams, want 11", n)
			}
		})
	}
}

// Another port of the pod has another port outside, and so has the same port of another pod.
func TestMappingsDiffer(t *testing.T) {
	w, out := newWorld(t, Options{}), server(t, families[0].outside)
	seen := map[uint16]bool{}
	for _, src := range []string{"10.244.1.10:5000", "10.244.1.10:5001", "10.244.1.11:5000"} {
		w.send(from(t, netstacktest.Spec{Src: netip.MustParseAddrPort(src), Dst: at(out)}, 0))
		_, client := hear(t, out)
		seen[client.Port()] = true
	}
	if len(seen) != 3 {
		t.Errorf("three of pods' ports are the ports %v outside", seen)
	}
}

// A refusal by one destination is told to the pod with that destination, and does not affect the others.
func TestErrorsAreOfOneDestination(t *testing.T) {
	for _, f := range families {
		w, gone, out := newWorld(t, Options{}), server(t, f.outside), server(t, f.outside)
		spec := netstacktest.Spec{Src: netip.MustParseAddrPort(f.pod), Payload: []byte("hello")}
		spec.Dst = at(gone)
		refused := from(t, spec, 0)
		_ = gone.Close()
		spec.Dst = at(out)
		for range 20 {
			w.send(refused)
			w.send(from(t, spec, 0))
			if got, _ := hear(t, out); string(got) != "hello" {
				t.Fatalf("%s: %q arrived", f.name, got)
			}
			var quoted packet.Packet
			if e := w.frame(); !e.Embedded(&quoted) || quoted.Tuple != refused.Tuple {
				t.Fatalf("%s: the pod was told of %+v, want %+v", f.name, quoted.Tuple, refused.Tuple)
			}
		}
	}
}

// A pod that talks to everybody, or from every port, loses only conversations of its own.
func TestFairShares(t *testing.T) {
	w, out := newWorld(t, Options{MaxSockets: 64, MaxConversations: 128}), server(t, families[0].outside)
	modest := from(t, netstacktest.Spec{Src: netip.MustParseAddrPort("10.244.1.11:53"), Dst: at(out), Payload: []byte("live")}, 0)
	w.send(modest)
	_, client := hear(t, out)
	flood := from(t, netstacktest.Spec{Src: netip.MustParseAddrPort("10.244.1.10:1"), Dst: netip.MustParseAddrPort("192.0.2.1:9")}, 0)
	for name, next := range map[string]func(i int){
		"destinations": func(i int) { flood.Tuple.DstPort = uint16(20000 + i) },
		"ports":        func(i int) { flood.Tuple.SrcPort = uint16(i) },
	} {
		for i := range 5000 {
			next(i)
			w.relay.Sweep(w.relay.start.Add(time.Duration(i) * time.Millisecond))
			_, _ = w.relay.Send(flood)
			for len(w.toPod) > 0 {
				<-w.toPod // ICMP errors about the flood
			}
		}
		if _, err := out.WriteToUDPAddrPort([]byte("answer"), client); err != nil {
			t.Fatal(err)
		}
		for {
			p := w.frame()
			if p.Tuple == modest.Tuple.Reverse() {
				break
			}
		}
		w.send(modest)
		if _, again := hear(t, out); again != client {
			t.Errorf("%s: the port of another pod's conversation changed", name)
		}
	}
	s := w.relay.Stats()
	if s.Conversations.Held > 128 || s.Sockets.Held > 64 || s.Sockets.TakenFromOwn == 0 || s.Conversations.TakenFromOwn == 0 {
		t.Errorf("%+v", s)
	}
	// A new pod gets its conversation from the pod that has the most.
	w.send(from(t, netstacktest.Spec{Src: netip.MustParseAddrPort("10.244.1.12:53"), Dst: at(out), Payload: []byte("new")}, 0))
	if got, _ := hear(t, out); string(got) != "new" {
		t.Errorf("%q arrived", got)
	}
}
