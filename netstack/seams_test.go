package netstack

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

// rules is a Policy with one ruling, about flows to one address or about all. It remembers for which flows it was
// called.
type rules struct {
	Ruling
	to string // compared with Flow.To.Dst; "" for all

	mu    sync.Mutex
	asked []Flow
}

func (r *rules) Judge(f *Flow) Ruling {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, *f)
	if r.to == "" || r.to == f.To.Dst.String() {
		return r.Ruling
	}
	return Ruling{}
}

func (r *rules) calls() []Flow {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Flow(nil), r.asked...)
}

// heard is one call of an Observer.
type heard struct {
	what string // "begun", "answered", "ended", or the DropReason
	flow Flow
	ref  uint32
	rule uint64
	told bool
	// owner is of what was refused or dropped.
	owner uint64
	last  flow.Entry // of "ended"
	was   flow.Info
}

// witness is an Observer that sends its calls to a channel.
type witness chan heard

func (w witness) Begun(f *Flow, ref uint32, rule uint64) {
	w <- heard{what: "begun", flow: *f, ref: ref, rule: rule}
}
func (w witness) Answered(uint32) {}
func (w witness) Refused(f *Flow, r Refusal) {
	w <- heard{what: r.Why.String(), flow: *f, rule: r.Rule, told: r.Told, owner: r.Owner}
}
func (w witness) Dropped(t *packet.Tuple, why DropReason, owner uint64) {
	w <- heard{what: why.String(), flow: Flow{Orig: *t}, owner: owner}
}

func (w witness) Ended(e flow.Entry, was flow.Info) { w <- heard{what: "ended", last: e, was: was} }

func (w witness) next(t *testing.T) heard {
	t.Helper()
	select {
	case h := <-w:
		return h
	case <-time.After(await.Patience):
		t.Fatal("the Observer heard nothing")
		return heard{}
	}
}

// exchange sends a packet and asserts that it arrives.
type exchange struct {
	from      string
	packet    netstacktest.Spec
	at, wants string
}

func (w *world) exchange(e exchange) {
	w.t.Helper()
	w.from(e.from, e.packet)
	w.expect(e.at, e.wants)
}

// kinds lists flows of every kind of origin, with a packet of each direction.
var kinds = []struct {
	name        string
	there, back exchange
	want        Flow // without the tuples
	orig, to    string
}{
	{
		"between pods",
		exchange{"a", datagram("10.244.1.10:1000", "10.244.1.11:80"), "b", "udp 10.244.1.10:1000 > 10.244.1.11:80"},
		exchange{"b", datagram("10.244.1.11:80", "10.244.1.10:1000"), "a", "udp 10.244.1.11:80 > 10.244.1.10:1000"},
		Flow{From: End{Kind: Pod, Attachment: "a"}, Toward: End{Kind: Pod, Attachment: "b"}},
		"10.244.1.10:1000 > 10.244.1.11:80", "10.244.1.10:1000 > 10.244.1.11:80",
	},
	{
		"translated",
		exchange{"a", datagram("10.244.1.10:1000", "10.96.0.1:80"), "b", "udp 10.244.1.10:1000 > 10.244.1.11:8080"},
		exchange{"b", datagram("10.244.1.11:8080", "10.244.1.10:1000"), "a", "udp 10.96.0.1:80 > 10.244.1.10:1000"},
		Flow{From: End{Kind: Pod, Attachment: "a"}, Toward: End{Kind: Pod, Attachment: "b"}, Backend: 1},
		"10.244.1.10:1000 > 10.96.0.1:80", "10.244.1.10:1000 > 10.244.1.11:8080",
	},
	{
		"masqueraded",
		exchange{"a", datagram("10.244.1.10:1000", "10.96.0.4:80"), "a", "udp 10.244.1.1:1000 > 10.244.1.10:8080"},
		exchange{"a", datagram("10.244.1.10:8080", "10.244.1.1:1000"), "a", "udp 10.96.0.4:80 > 10.244.1.10:1000"},
		Flow{From: End{Kind: Pod, Attachment: "a"}, Toward: End{Kind: Pod, Attachment: "a"}, Backend: 3},
		"10.244.1.10:1000 > 10.96.0.4:80", "10.244.1.1:1000 > 10.244.1.10:8080",
	},
	{
		"to another node",
		exchange{"a", datagram("10.244.1.10:1000", "10.244.2.10:80"), "link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:80"},
		exchange{"node-2", datagram("10.244.2.10:80", "10.244.1.10:1000"), "a", "udp 10.244.2.10:80 > 10.244.1.10:1000"},
		Flow{From: End{Kind: Pod, Attachment: "a"}, Toward: End{Kind: OtherNode, Peer: node2}},
		"10.244.1.10:1000 > 10.244.2.10:80", "10.244.1.10:1000 > 10.244.2.10:80",
	},
	{
		"from another node",
		exchange{"node-2", datagram("10.244.2.10:1000", "10.244.1.11:80"), "b", "udp 10.244.2.10:1000 > 10.244.1.11:80"},
		exchange{"b", datagram("10.244.1.11:80", "10.244.2.10:1000"), "link", "node-2 udp 10.244.1.11:80 > 10.244.2.10:1000"},
		Flow{From: End{Kind: OtherNode, Peer: node2}, Toward: End{Kind: Pod, Attachment: "b"}},
		"10.244.2.10:1000 > 10.244.1.11:80", "10.244.2.10:1000 > 10.244.1.11:80",
	},
	{
		"of a client of another node's sockets",
		exchange{"node-2 encap", datagram("198.51.100.7:4000", "10.244.1.11:8080"), "b", "udp 198.51.100.7:4000 > 10.244.1.11:8080"},
		exchange{"b", datagram("10.244.1.11:8080", "198.51.100.7:4000"), "link", "node-2 encap 10.244.1.1 > 10.244.2.1: udp 10.244.1.11:8080 > 198.51.100.7:4000"},
		Flow{From: End{Kind: Outside, Peer: node2}, Toward: End{Kind: Pod, Attachment: "b"}},
		"198.51.100.7:4000 > 10.244.1.11:8080", "198.51.100.7:4000 > 10.244.1.11:8080",
	},
	{
		"of the host",
		exchange{"host", datagram("172.31.0.11:1000", "10.244.1.11:80"), "b", "udp 172.31.0.11:1000 > 10.244.1.11:80"},
		exchange{"b", datagram("10.244.1.11:80", "172.31.0.11:1000"), "host", "udp 10.244.1.11:80 > 172.31.0.11:1000"},
		Flow{From: End{Kind: Host, Attachment: "host"}, Toward: End{Kind: Pod, Attachment: "b"}},
		"172.31.0.11:1000 > 10.244.1.11:80", "172.31.0.11:1000 > 10.244.1.11:80",
	},
}

// TestPolicyJudgesOnce: a Policy is asked once for a flow of any kind, and once more after the rules changed, at a
// packet of either direction. It is not asked when equal rules are set again.
func TestPolicyJudgesOnce(t *testing.T) {
	for _, f := range kinds {
		for _, first := range []struct {
			name string
			exchange
		}{{"there", f.there}, {"back", f.back}} {
			t.Run(f.name+", then "+first.name, func(t *testing.T) {
				w, p := newWorld(t), &rules{}
				w.policy = p
				w.set()
				for range 2 {
					w.exchange(f.there)
					w.exchange(f.back)
				}
				w.set() // the same
				w.exchange(first.exchange)
				calls := p.calls()
				if len(calls) != 1 {
					t.Fatalf("asked %d times, want once", len(calls))
				}
				again := &rules{}
				w.policy = again
				w.set()
				for range 2 {
					w.exchange(first.exchange)
				}
				w.exchange(f.there)
				w.exchange(f.back)
				if len(again.calls()) != 1 || len(p.calls()) != 1 {
					t.Fatalf("after the rules changed: the old ones were asked %d times, the new ones %d times", len(p.calls())-1, len(again.calls()))
				}
				if !calls[0].Begins || again.calls()[0].Begins {
					t.Errorf("asked for flows that begin: %v, then %v", calls[0].Begins, again.calls()[0].Begins)
				}
				for _, got := range append(calls, again.calls()...) {
					if o, to := describeTuple(&got.Orig), describeTuple(&got.To); o != f.orig || to != f.to {
						t.Errorf("asked for %s as %s, want %s as %s", o, to, f.orig, f.to)
					}
					if got.From != f.want.From || got.Toward != f.want.Toward || got.Backend != f.want.Backend {
						t.Errorf("asked for a flow from %+v to %+v with backend %d, want %+v", got.From, got.Toward, got.Backend, f.want)
					}
				}
			})
		}
	}
}

// TestPolicyDenies: a denied flow does not begin, and its sender is told if the ruling says so.
func TestPolicyDenies(t *testing.T) {
	syn, ack := segment("10.244.1.10:1000", "10.96.0.1:80", packet.SYN), segment("10.244.1.10:1000", "10.96.0.1:80", packet.ACK)
	for _, c := range []struct {
		name   string
		ruling Ruling
		packet netstacktest.Spec
		answer string
	}{
		{"TCP, refused", Ruling{Refuse, 7}, syn, "tcp 10.96.0.1:80 > 10.244.1.10:1000 RA"},
		{"TCP in the middle, refused", Ruling{Refuse, 7}, ack, "tcp 10.96.0.1:80 > 10.244.1.10:1000 R"},
		{"UDP, refused", Ruling{Refuse, 7}, datagram("10.244.1.10:1000", "10.244.1.11:80"), "icmp 3/13 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 10.244.1.11:80"},
		{"TCP, dropped", Ruling{Drop, 7}, syn, ""},
		{"UDP, dropped", Ruling{Drop, 7}, datagram("10.244.1.10:1000", "10.244.1.11:80"), ""},
		{"a reset", Ruling{Refuse, 7}, segment("10.244.1.10:1000", "10.244.1.11:80", packet.RST), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.policy = &rules{to: "10.244.1.11", Ruling: c.ruling}
			w.set()
			w.from("a", c.packet)
			if c.answer != "" {
				w.expect("a", c.answer)
			}
			w.dropped(Denied)
			// A permitted packet gets through, and is the first that arrives.
			w.from("a", datagram("10.244.1.10:1000", "10.244.2.10:80"))
			w.expect("link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:80")
			w.from("node-2", datagram("10.244.2.10:80", "10.244.1.10:1000"))
			w.expect("a", "udp 10.244.2.10:80 > 10.244.1.10:1000")
			if n := len(w.devices["b"].Frames()); n != 0 {
				t.Errorf("pod b got %d frames", n)
			}
			if n := w.path.flows.Stats().Len; n != 1 {
				t.Errorf("%d flows are in the table, want only that of the permitted packets", n)
			}
		})
	}
}

// TestPolicyEndsFlow: packets of a flow that the rules no longer permit are refused, in both directions, whatever the
// rules say of a flow from its far end. When the rules permit it again, it goes on.
func TestPolicyEndsFlow(t *testing.T) {
	for _, f := range kinds {
		for _, next := range [][2]exchange{{f.there, f.back}, {f.back, f.there}} {
			t.Run(f.name+", then from "+next[0].from, func(t *testing.T) {
				hears := make(witness, 16)
				w := newWorldWith(t, hears)
				w.policy = &rules{Ruling: Ruling{Permit, 1}}
				w.set()
				w.exchange(f.there)
				w.exchange(f.back)
				if h := hears.next(t); h.what != "begun" || h.rule != 1 {
					t.Fatalf("heard %+v", h)
				}
				w.policy = policyFunc(func(judged *Flow) Ruling {
					if describeTuple(&judged.Orig) == f.orig {
						return Ruling{Drop, 9}
					}
					return Ruling{}
				})
				w.set()
				for i, e := range next {
					w.from(e.from, e.packet)
					w.counted(Denied, uint64(i+1))
					h := hears.next(t)
					if h.what != "denied" || h.rule != 9 || describeTuple(&h.flow.Orig) != f.orig || describeTuple(&h.flow.To) != f.to {
						t.Errorf("heard %s by rule %d of %s as %s", h.what, h.rule, describeTuple(&h.flow.Orig), describeTuple(&h.flow.To))
					}
				}
				w.policy = &rules{}
				w.set()
				w.exchange(next[0])
				w.exchange(next[1])
				if n := w.path.flows.Stats().Len; n != 1 {
					t.Errorf("%d flows are in the table, want the one", n)
				}
			})
		}
	}
}

// TestPolicyCutsConnection: both ends of an established connection are told that it is gone, if the ruling says so.
func TestPolicyCutsConnection(t *testing.T) {
	w := newWorld(t)
	w.policy = &rules{}
	w.set()
	w.exchange(exchange{"a", segment("10.244.1.10:1000", "10.96.0.1:80", packet.SYN), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S"})
	w.exchange(exchange{"b", segment("10.244.1.11:8080", "10.244.1.10:1000", packet.SYN|packet.ACK), "a", "tcp 10.96.0.1:80 > 10.244.1.10:1000 SA"})
	w.policy = &rules{Ruling: Ruling{Refuse, 9}}
	w.set()
	w.exchange(exchange{"b", segment("10.244.1.11:8080", "10.244.1.10:1000", packet.ACK), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 R"})
	w.exchange(exchange{"a", segment("10.244.1.10:1000", "10.96.0.1:80", packet.ACK), "a", "tcp 10.96.0.1:80 > 10.244.1.10:1000 R"})
	w.counted(Denied, 2)
}

// TestReplyDoesNotSettle: packets that a backend still sends after it is gone do not let its client's flow go on, with
// or without a Policy.
func TestReplyDoesNotSettle(t *testing.T) {
	for name, policy := range map[string]Policy{"without a Policy": nil, "with a Policy": &rules{}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policy = policy
			w.set()
			w.exchange(exchange{"a", datagram("10.244.1.10:1000", "10.96.0.1:80"), "b", "udp 10.244.1.10:1000 > 10.244.1.11:8080"})
			w.balancer = &balancer{picks: w.balancer.picks, states: map[uint64]packet.BackendState{1: packet.BackendGone, 2: packet.BackendReady}}
			w.balancer.picks[ap("10.96.0.1:80")] = picked(2, "10.244.2.10:8080")
			w.set()
			w.exchange(exchange{"b", datagram("10.244.1.11:8080", "10.244.1.10:1000"), "a", "udp 10.96.0.1:80 > 10.244.1.10:1000"})
			w.exchange(exchange{"a", datagram("10.244.1.10:1000", "10.96.0.1:80"), "link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:8080"})
		})
	}
}

// TestSetMovesTheGenerationOnlyForChanges: only a change moves the generation, since every flow is judged again then.
func TestSetMovesTheGenerationOnlyForChanges(t *testing.T) {
	w := newWorld(t)
	generation := func() uint32 { return w.path.snapshot.Load().generation }
	before := generation()
	w.config.PodCIDRs = addresstest.Prefixes("10.244.1.0/24", "fd00:10:244:1::/64") // equal
	w.set()
	if generation() != before {
		t.Error("an equal Config, Balancer and Policy moved the generation")
	}
	for i, change := range []func(){
		func() { w.config.MTU = 1400 },
		func() { w.balancer = &balancer{} },
		func() { w.policy = &rules{} },
		func() { w.policy = &rules{} },
		func() { w.policy = nil },
		func() { w.config.Peers = w.config.Peers[1:] },
	} {
		change()
		w.set()
		if got := generation(); got != before+uint32(i)+1 {
			t.Errorf("change %d: the generation is %d, want %d", i, got, before+uint32(i)+1)
		}
	}
}

// TestUncomparable: a value that cannot be compared counts as changed.
func TestUncomparable(t *testing.T) {
	type uncomparable struct {
		hotBalancer
		_ []int
	}
	w := newWorld(t)
	for range 2 {
		before := w.path.snapshot.Load().generation
		if err := w.path.Set(w.config, uncomparable{}, nil); err != nil {
			t.Fatal(err)
		}
		if w.path.snapshot.Load().generation == before {
			t.Error("the generation did not move")
		}
	}
}

// permitAll is a Policy that permits everything, and counter an Observer that only counts.
type permitAll struct{ judged int }

func (p *permitAll) Judge(*Flow) Ruling { p.judged++; return Ruling{} }

type tallies struct{ begun, answered, refused, dropped, ended int }

func (c *tallies) Begun(*Flow, uint32, uint64)               { c.begun++ }
func (c *tallies) Answered(uint32)                           { c.answered++ }
func (c *tallies) Refused(*Flow, Refusal)                    { c.refused++ }
func (c *tallies) Dropped(*packet.Tuple, DropReason, uint64) { c.dropped++ }
func (c *tallies) Ended(flow.Entry, flow.Info)               { c.ended++ }

// TestSeamsAllocateNothing: a Policy and an Observer cause no allocation, and a packet of a known flow calls neither.
func TestSeamsAllocateNothing(t *testing.T) {
	for _, wk := range walks() {
		t.Run(wk.name, func(t *testing.T) {
			w, _, send := wk.ready(t)
			p, o := &permitAll{}, &tallies{}
			s := w.path.snapshot.Load()
			s.policy, w.path.observer = p, o
			w.path.flows.OnEnd(o.Ended)
			w.path.flows.OnAnswer(o.Answered)
			if n := testing.AllocsPerRun(2*clients, send); n != 0 {
				t.Errorf("%v allocations per packet", n)
			}
			judged, begun, refused, dropped, ended := 0, 0, 0, 0, 0
			switch wk.name {
			case "new flow and reset":
				judged, begun = clients+1, clients+1 // half of the 2*clients+1 packets begin a flow
				ended = 1                            // the first flow begins again, after its reset
			case "refused":
				refused = 2*clients + 1
			case "spoofed":
				dropped = 2*clients + 1
			}
			if want := (tallies{begun: begun, refused: refused, dropped: dropped, ended: ended}); p.judged != judged || *o != want {
				t.Errorf("judged %d, heard %+v; want %d, %+v", p.judged, *o, judged, want)
			}
		})
	}
}

// TestAt: who has an address is the same by whichever way it is asked.
func TestAt(t *testing.T) {
	w := newWorld(t)
	for addr, want := range map[string]End{
		"10.244.1.10":     {Kind: Pod, Attachment: "a"},
		"fd00:10:244:1::": {Kind: Nobody},
		"10.244.1.2":      {Kind: Host, Attachment: "host"},
		"172.31.0.11":     {Kind: Host, Attachment: "host"},
		"10.244.1.1":      {Kind: Stack},
		"10.244.2.10":     {Kind: OtherNode, Peer: node2},
		"10.244.1.99":     {Kind: Nobody},
		"192.0.2.1":       {Kind: Outside},
	} {
		a := netip.MustParseAddr(addr)
		if got := w.path.At(a); got != want {
			t.Errorf("at %s is %+v, want %+v", addr, got, want)
		}
	}
	w.path.Detach("host")
	if got, want := w.path.At(netip.MustParseAddr("172.31.0.11")), (End{Kind: Host}); got != want {
		t.Errorf("without a host TAP the node is %+v, want %+v", got, want)
	}
}
