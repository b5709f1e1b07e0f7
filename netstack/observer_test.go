package netstack

import (
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// listener is a witness that hears of answers, too.
type listener struct{ witness }

func (l listener) Answered(ref uint32) { l.witness <- heard{what: "answered", ref: ref} }

// TestObserverHears: an Observer is told of every flow that begins, and of every packet whose flow is refused, with the
// reason.
func TestObserverHears(t *testing.T) {
	for _, c := range []struct {
		name   string
		packet netstacktest.Spec
		heard  []string
		to     string
	}{
		{"a flow", segment("10.244.1.10:1000", "10.96.0.1:80", packet.SYN), []string{"begun"}, "10.244.1.10:1000 > 10.244.1.11:8080"},
		{"no endpoints", segment("10.244.1.10:1000", "10.96.0.3:80", packet.SYN), []string{"no-endpoints"}, "10.244.1.10:1000 > 10.96.0.3:80"},
		{"no such port", segment("10.244.1.10:1000", "10.96.0.1:81", packet.SYN), []string{"unknown-port"}, "10.244.1.10:1000 > 10.96.0.1:81"},
		{"traffic policy Local", segment("10.244.1.10:1000", "10.96.0.7:80", packet.SYN), []string{"local-policy"}, "10.244.1.10:1000 > 10.96.0.7:80"},
		{"not for this client", segment("10.244.1.10:1000", "10.96.0.8:80", packet.SYN), []string{"source-range"}, "10.244.1.10:1000 > 10.96.0.8:80"},
		{"denied", segment("10.244.1.10:1000", "10.244.2.99:80", packet.SYN), []string{"denied"}, "10.244.1.10:1000 > 10.244.2.99:80"},
		{"nobody there", segment("10.244.1.10:1000", "10.244.1.99:80", packet.SYN), []string{"begun", "no-route"}, "10.244.1.10:1000 > 10.244.1.99:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			hears := make(witness, 16)
			w := newWorldWith(t, hears)
			w.policy = &rules{to: "10.244.2.99", Ruling: Ruling{Drop, 4}}
			w.set()
			w.from("a", c.packet)
			for _, want := range c.heard {
				h := hears.next(t)
				rule := map[string]uint64{"denied": 4}[want]
				if h.what != want || h.rule != rule || describeTuple(&h.flow.To) != c.to || h.flow.From != (End{Kind: Pod, Attachment: "a"}) {
					t.Errorf("heard %s by rule %d of a flow to %s from %+v, want %s by rule %d of one to %s",
						h.what, h.rule, describeTuple(&h.flow.To), h.flow.From, want, rule, c.to)
				}
			}
			w.from("a", c.packet)
			if c.heard[0] == "begun" {
				w.from("a", segment("10.244.1.10:1001", "10.96.0.3:80", packet.SYN))
				c.heard = append(c.heard[1:], "no-endpoints")
			}
			if h := hears.next(t); h.what != c.heard[0] {
				t.Errorf("heard %s of the second packet, want %s", h.what, c.heard[0])
			}
		})
	}
}

// TestObserverHearsOfCut: an Observer is told that a flow is refused when its backend is gone for good.
func TestObserverHearsOfCut(t *testing.T) {
	hears := make(witness, 16)
	w := newWorldWith(t, hears)
	w.exchange(exchange{"a", segment("10.244.1.10:1000", "10.96.0.1:80", packet.SYN), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S"})
	w.balancer = &balancer{}
	w.set()
	w.from("a", segment("10.244.1.10:1000", "10.96.0.1:80", packet.ACK))
	for _, want := range []string{"begun", "ended", "backend-gone"} {
		h := hears.next(t)
		if want == "ended" && h.what == want && h.last.Backend == 1 {
			continue
		}
		if h.what != want || describeTuple(&h.flow.To) != "10.244.1.10:1000 > 10.244.1.11:8080" || h.flow.Backend != 1 {
			t.Errorf("heard %s of %s with backend %d, want %s", h.what, describeTuple(&h.flow.To), h.flow.Backend, want)
		}
	}
}

// TestObserverHearsOfEnd: an Observer is told of a flow that expired, with its last state.
func TestObserverHearsOfEnd(t *testing.T) {
	hears := make(witness, 16)
	w := newWorldWith(t, listener{hears})
	w.exchange(exchange{"a", datagram("10.244.1.10:1000", "10.96.0.1:80"), "b", "udp 10.244.1.10:1000 > 10.244.1.11:8080"})
	w.exchange(exchange{"b", datagram("10.244.1.11:8080", "10.244.1.10:1000"), "a", "udp 10.96.0.1:80 > 10.244.1.10:1000"})
	w.clock.Add(1000)
	for range 60 { // Sweep takes that many calls for the whole table
		w.path.flows.Sweep()
	}
	begun, answered := hears.next(t), hears.next(t)
	if begun.what != "begun" || answered.what != "answered" || begun.ref != answered.ref {
		t.Fatalf("heard %+v, %+v", begun, answered)
	}
	h := hears.next(t)
	if h.what != "ended" || describeTuple(&h.last.Orig) != "10.244.1.10:1000 > 10.96.0.1:80" || h.was.State != flow.Replied || h.was.Age != 1000 || h.was.Idle != 1000 {
		t.Errorf("heard %s of %s, %+v", h.what, describeTuple(&h.last.Orig), h.was)
	}
	for dir, c := range h.last.Counts {
		if c.Packets != 1 || c.Bytes != 33 {
			t.Errorf("direction %d: %+v, want one packet of 33 bytes", dir, c)
		}
	}
}

// TestObserverHearsOfDrops: an Observer is told of packets that are dropped, whoever is to be believed about them, and
// of refused flows whether their senders were told.
func TestObserverHearsOfDrops(t *testing.T) {
	hears := make(witness, 16)
	w := newWorldWith(t, hears)
	pod := ownerAt(packet.AddrFrom(netip.MustParseAddr("10.244.1.10")))
	for _, c := range []struct {
		from   string
		packet netstacktest.Spec
		want   heard
	}{
		{"a", segment("10.244.1.99:1000", "10.96.0.1:80", packet.SYN), heard{what: "spoofed", owner: pod}},
		{"node-2", segment("10.244.9.9:1000", "10.244.1.11:80", packet.SYN), heard{what: "spoofed-peer", owner: node2}},
		{"a", segment("10.244.1.10:1000", "10.96.0.3:80", packet.SYN), heard{what: "no-endpoints", owner: pod, told: true}},
		{"a", segment("10.244.1.10:1000", "10.96.0.7:80", packet.SYN), heard{what: "local-policy", owner: pod}},
	} {
		w.from(c.from, c.packet)
		h := hears.next(t)
		if got := (heard{what: h.what, owner: h.owner, told: h.told}); got != c.want {
			t.Errorf("heard %+v, want %+v", got, c.want)
		}
		if want := c.packet; h.flow.Orig.Src.Netip() != want.Src.Addr() || h.flow.Orig.DstPort != want.Dst.Port() {
			t.Errorf("heard of %s: %s", c.want.what, describeTuple(&h.flow.Orig))
		}
	}
}
