package netstack

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/quota"
	"tapestry.dev/tapestry/netstack/tap"
)

// The client of these tests, the Service that it asks, the pod b that gives its connections up, and two pods of the
// other node.
const (
	asking, asked        = "10.244.1.10:4000", "10.96.0.1:80"
	first, second, third = "10.244.1.11:8080", "10.244.2.10:8080", "10.244.2.11:8080"
	clock                = 0x01020304 // the client's, as its SYN says
)

// numbered is a segment with its sequence number and what it acknowledges, and with both clocks in its timestamps.
func numbered(src, dst string, flags uint8, seq, ack, ours, theirs uint32, options ...byte) netstacktest.Spec {
	s := segment(src, dst, flags)
	s.Seq, s.Ack = seq, ack
	s.Options = binary.BigEndian.AppendUint32([]byte{1, 1, 8, 10}, ours)
	s.Options = append(binary.BigEndian.AppendUint32(s.Options, theirs), options...)
	return s
}

// accepting is how a server whose numbers begin at seq, and whose clock is at ours, accepts the connection of synSpec.
func accepting(src, dst string, seq, ours uint32) netstacktest.Spec {
	return numbered(src, dst, packet.SYN|packet.ACK, seq, 7, ours, clock, 2, 4, 5, 0x64, 1, 3, 3, 7)
}

// abandons is how a kernel answers a segment of a connection that it does not have, and that acknowledges seq.
func abandons(src, dst string, seq uint32) netstacktest.Spec {
	s := segment(src, dst, packet.RST)
	s.Seq = seq
	return s
}

// hears waits for the next TCP segment somewhere, and compares its description with want: as expect has it, then its
// sequence number, what it acknowledges, its timestamps, and the edges of its blocks.
func (w *world) hears(where, want string) {
	w.t.Helper()
	var p packet.Packet
	got := ""
	if where == "link" {
		w.until(func() bool { return len(w.link.Sent()) > 0 })
		s := <-w.link.Sent()
		got = w.describeSent(s)
		ip := s.Packets[0]
		if s.Via != nil {
			ip, _, _ = packet.Decap(ip)
		}
		p.ParseIP(ip)
	} else {
		w.parsed(where, &p)
		got = describe(w.t, &p)
	}
	got += fmt.Sprint(" ", p.Segment().Seq, " ", p.Segment().Ack)
	for o := p.IP[p.L4+20 : p.Payload]; len(o) > 1; {
		if o[0] == 1 {
			o = o[1:]
			continue
		}
		if o[0] == 8 || o[0] == 5 {
			for b := o[2:o[1]]; len(b) > 0; b = b[4:] {
				got += fmt.Sprint(" ", binary.BigEndian.Uint32(b))
			}
		}
		o = o[o[1]:]
	}
	if got != want {
		w.t.Fatalf("%s hears\n\t%s, want\n\t%s", where, got, want)
	}
}

// told is a hop of which the numbers count, too; see hears.
type told hop

func (w *world) tell(hops ...told) {
	w.t.Helper()
	for _, h := range hops {
		w.from(h.from, h.spec)
		if h.to != "" {
			w.hears(h.to, h.want)
		}
	}
}

// open opens a connection from pod a to pod b through a Service.
func (w *world) open() {
	w.t.Helper()
	w.tell(
		told{"a", synSpec(asking, asked), "b", "tcp " + asking + " > " + first + " S 6 0 16909060 0"},
		told{"b", accepting(first, asking, 1000, 500), "a", "tcp " + asked + " > " + asking + " SA 1000 7 500 16909060"},
		told{"a", numbered(asking, asked, packet.ACK, 7, 1001, clock+1, 500), "b", "tcp " + asking + " > " + first + " A 7 1001 16909061 500"},
	)
}

// Steps of a connection that pod b gives up and a pod of the other node takes over.
var (
	givenUp  = told{"b", abandons(first, asking, 1001), "link", "node-2 tcp " + asking + " > " + second + " S 6 0 16909060 0"}
	taken    = told{"node-2", accepting(second, asking, 90000, 70), "a", "tcp " + asked + " > " + asking + " SA 1000 7 500 16909060"}
	answered = told{"a", numbered(asking, asked, packet.ACK, 7, 1001, clock+2, 500), "link", "node-2 tcp " + asking + " > " + second + " A 7 90001 16909062 70"}
)

// continued is how a connection that was taken over goes on: with blocks of selective acknowledgements, data, an end.
var continued = []told{
	{"a", numbered(asking, asked, packet.ACK|packet.PSH, 7, 1001, clock+3, 501, 1, 1, 5, 10, 0, 0, 7, 0xd1, 0, 0, 0x0b, 0xb9), "link",
		"node-2 tcp " + asking + " > " + second + " PA 7 90001 16909063 71 91001 92001"},
	{"node-2", numbered(second, asking, packet.ACK|packet.PSH, 90001, 9, 80, clock+3), "a", "tcp " + asked + " > " + asking + " PA 1001 9 510 16909063"},
	{"node-2", numbered(second, asking, packet.ACK|packet.FIN, 90011, 9, 81, clock+3), "a", "tcp " + asked + " > " + asking + " FA 1011 9 511 16909063"},
}

// TestTakeOver: a backend accepts a connection and gives it up before it has said anything more. Another one serves the
// client, which hears of nothing and goes on with the numbers that it knows.
func TestTakeOver(t *testing.T) {
	w := newRefusing(t, second, third)
	w.open()
	w.tell(givenUp, taken, answered)
	w.tell(continued...)
	w.silent()
	if n := w.path.Stats().Drops[Retried.String()]; n != 1 {
		t.Errorf("%d packets retried: %v", n, w.path.Stats())
	}
	if n := w.path.flows.Stats().Len; n != 1 {
		t.Errorf("%d flows", n)
	}
}

// TestTakeOverOutlivesAgent: the next agent finds in the flow table how far the numbers are apart.
func TestTakeOverOutlivesAgent(t *testing.T) {
	memory := make([]byte, flow.Size(4096))
	w := newWorldOver(t, nil, memory)
	w.retry(second)
	w.open()
	w.tell(givenUp, taken, answered)
	if err := w.path.Close(); err != nil {
		t.Fatal(err)
	}
	w = newWorldOver(t, nil, memory)
	w.retry(second)
	w.tell(continued...)
	w.silent()
}

// TestNextTakesOver: who is asked may refuse, or give the connection up too. The numbers of the client stay what they
// were.
func TestNextTakesOver(t *testing.T) {
	w := newRefusing(t, third, "10.244.1.77:8080", second) // the second of them is gone
	w.open()
	w.tell(
		told{"b", abandons(first, asking, 1001), "link", "node-2 tcp " + asking + " > " + third + " S 6 0 16909060 0"},
		told{"node-2", refuses(third, asking), "link", "node-2 tcp " + asking + " > " + second + " S 6 0 16909060 0"},
		taken, answered,
	)
	w.tell(continued...)

	w = newRefusing(t, third, second)
	w.open()
	ends := abandons(third, asking, 78)
	ends.TCPFlags, ends.Ack = packet.RST|packet.ACK, 7 // its kernel ends it by itself
	w.tell(
		told{"b", abandons(first, asking, 1001), "link", "node-2 tcp " + asking + " > " + third + " S 6 0 16909060 0"},
		told{"node-2", accepting(third, asking, 77, 9), "a", "tcp " + asked + " > " + asking + " SA 1000 7 500 16909060"},
		told{"a", numbered(asking, asked, packet.ACK, 7, 1001, clock+2, 500), "link", "node-2 tcp " + asking + " > " + third + " A 7 78 16909062 9"},
		told{"node-2", ends, "link", "node-2 tcp " + asking + " > " + second + " S 6 0 16909060 0"},
		taken, answered,
	)
	w.tell(continued...)
	w.silent()
}

// TestClientSendsMeanwhile: what a client sends while another backend is asked makes that the SYN again, since it may
// have been lost; another backend would reset what it does not know.
func TestClientSendsMeanwhile(t *testing.T) {
	w := newRefusing(t, second)
	w.open()
	again := "node-2 tcp " + asking + " > " + second + " S 6 0 16909060 0"
	w.tell(
		givenUp,
		told{"a", numbered(asking, asked, packet.ACK|packet.PSH, 7, 1001, clock+1, 500), "link", again},
		told{"a", numbered(asking, asked, packet.ACK|packet.FIN, 9, 1001, clock+1, 500), "link", again},
		told{"node-2", segment(second, asking, packet.ACK), "", ""}, // it answers nothing that was sent
		taken,
		told{"a", numbered(asking, asked, packet.ACK, 10, 1001, clock+2, 500), "link", "node-2 tcp " + asking + " > " + second + " A 10 90001 16909062 70"},
		// The answer to the other SYN: the client acknowledges it again.
		told{"node-2", accepting(second, asking, 90000, 71), "a", "tcp " + asked + " > " + asking + " SA 1000 7 501 16909060"},
	)
	w.silent()

	w = newRefusing(t, second)
	w.open()
	anew := synSpec(asking, asked)
	anew.Seq = 60
	// It has lost the connection.
	w.tell(givenUp, told{"a", anew, "b", "tcp " + asking + " > " + first + " S 60 0 16909060 0"})
	w.silent()
}

// meanwhile is a Policy that permits everything, and does something before it permits a flow to an endpoint.
type meanwhile struct {
	to string
	do func()
}

func (m *meanwhile) Judge(f *Flow) Ruling {
	if do := m.do; do != nil && f.To.DstPort == 8080 && f.To.Dst.String()+":8080" == m.to {
		m.do = nil
		do()
	}
	return Ruling{Action: Permit}
}

// TestClientSendsBetween: what a client sends after the flow to one backend has ended, and before that to the other has
// begun, begins one that nobody needs.
func TestClientSendsBetween(t *testing.T) {
	w := newRefusing(t, second)
	between := &meanwhile{to: second}
	w.policy = between
	w.set()
	w.open()
	att := w.path.attachments.table.Load().byName["a"]
	between.do = func() {
		other := w.path.workers.get()
		defer w.path.workers.put(other)
		frame := numbered(asking, asked, packet.ACK|packet.PSH, 7, 1001, clock+1, 500).Frame(att.MAC, tap.RouterMAC)
		other.from = att
		other.fromTAP(append(make([]byte, 0, packet.MaxFrame), frame...))
	}
	w.from("b", abandons(first, asking, 1001))
	w.hears("b", "tcp "+asking+" > "+first+" PA 7 1001 16909061 500")
	w.hears("link", givenUp.want)
	w.from("b", abandons(first, asking, 1001)) // the answer to that
	w.expect("a", "tcp "+first+" > "+asking+" R")
	w.tell(taken, answered)
	w.tell(continued...)
	w.silent()
}

// TestGivenUpForGood: when nobody takes a connection over, its client hears of that by a reset that it obeys.
func TestGivenUpForGood(t *testing.T) {
	reset := "tcp " + asked + " > " + asking + " R 1001 0"
	other := accepting(second, asking, 90000, 70)
	other.Options = other.Options[:16] // it scales no window
	known := accepting(second, asking, 90000, 70)
	known.Options = append(known.Options, 30, 4, 0, 0) // Multipath TCP
	for name, c := range map[string]struct {
		next  []string
		steps []told
	}{
		"there is no other":  {nil, []told{{"b", abandons(first, asking, 1001), "a", reset}}},
		"the other refuses":  {[]string{second}, []told{givenUp, {"node-2", refuses(second, asking), "a", reset}}},
		"on other terms":     {[]string{second}, []told{givenUp, {"node-2", other, "a", reset}}},
		"on terms not known": {[]string{second}, []told{givenUp, {"node-2", known, "a", reset}}},
		"a reset from elsewhere": {[]string{second}, []told{
			givenUp, {"node-2", abandons(second, asking, 90001), "", ""}, // it acknowledges no SYN
			taken, answered,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRefusing(t, c.next...)
			w.open()
			w.tell(c.steps...)
			if len(w.link.Sent()) > 0 {
				w.hears("link", "node-2 tcp "+asking+" > "+second+" R 7 0") // so that it waits for nothing
			}
			w.silent()
		})
	}
	t.Run("the other is gone", func(t *testing.T) {
		w := newRefusing(t, "10.244.1.77:8080")
		w.open()
		w.from("b", abandons(first, asking, 1001))
		w.expect("a", "icmp 3/1 10.244.1.1 > 10.244.1.10 about "+asking+" > "+asked)
		w.hears("a", reset)
		w.silent()
	})
	t.Run("the SYN is displaced", func(t *testing.T) {
		w := newRefusing(t, second)
		w.open()
		w.tell(givenUp)
		for i := range 64 {
			w.from("a", synSpec(fmt.Sprintf("10.244.1.10:%d", 5000+i), asked))
			w.expect("b", fmt.Sprintf("tcp 10.244.1.10:%d > %s S", 5000+i, first))
		}
		w.tell(told{"a", numbered(asking, asked, packet.ACK, 7, 1001, clock+1, 500), "a", reset})
		w.silent()
	})
}

// TestNotTakenOver: a connection stays with its backend when that may have heard something of its client, or has said
// something; and so do those of routed clients.
func TestNotTakenOver(t *testing.T) {
	passed := func(seq, ack int, flags string) string {
		return fmt.Sprintf("tcp %s > %s %s %d %d", asked, asking, flags, seq, ack)
	}
	took := abandons(first, asking, 1001)
	took.TCPFlags, took.Ack = packet.RST|packet.ACK, 17
	for name, steps := range map[string][]told{
		"it has taken data":       {{"b", took, "a", passed(1001, 17, "RA")}},
		"an older connection's":   {{"b", abandons(first, asking, 1000), "a", passed(1000, 0, "R")}},
		"beyond what it has sent": {{"b", abandons(first, asking, 1002), "a", passed(1002, 0, "R")}},
		"it has acknowledged": {
			{"b", numbered(first, asking, packet.ACK, 1001, 17, 501, clock), "a", passed(1001, 17, "A") + " 501 16909060"},
			{"b", abandons(first, asking, 1001), "a", passed(1001, 0, "R")},
		},
		"it has spoken": {
			{"b", numbered(first, asking, packet.ACK|packet.PSH, 1001, 7, 501, clock), "a", passed(1001, 7, "PA") + " 501 16909060"},
			{"b", abandons(first, asking, 1001), "a", passed(1001, 0, "R")},
		},
		"the client has ended": {
			{"a", numbered(asking, asked, packet.ACK|packet.FIN, 7, 1001, clock+1, 500), "b", "tcp " + asking + " > " + first + " FA 7 1001 16909061 500"},
			{"b", abandons(first, asking, 1001), "a", passed(1001, 0, "R")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRefusing(t, second)
			w.open()
			w.tell(steps...)
			w.silent()
		})
	}
	t.Run("a routed client", func(t *testing.T) {
		const client = "198.51.100.7:4000"
		w := newRefusing(t, second)
		w.tell(
			told{"host", synSpec(client, "203.0.113.1:80"), "b", "tcp " + client + " > " + first + " S 6 0 16909060 0"},
			told{"b", accepting(first, client, 1000, 500), "host", "tcp 203.0.113.1:80 > " + client + " SA 1000 7 500 16909060"},
			told{"host", numbered(client, "203.0.113.1:80", packet.ACK, 7, 1001, clock+1, 500), "b", "tcp " + client + " > " + first + " A 7 1001 16909061 500"},
			told{"b", abandons(first, client, 1001), "host", "tcp 203.0.113.1:80 > " + client + " R 1001 0"},
		)
		w.silent()
	})
	t.Run("beyond the quota", func(t *testing.T) {
		w := newRefusing(t, second)
		now := time.Now()
		w.path.now = func() time.Time { return now }
		w.path.SetQuotas(map[string]quota.Quota{"a": {Flows: 1}})
		w.open()
		w.tell(told{"b", abandons(first, asking, 1001), "a", passed(1001, 0, "R")})
		w.silent()
	})
}

// TestTakenOverIsCut: what this node answers for a connection that was taken over has the client's numbers, and a reset
// of the backend ends the flow.
func TestTakenOverIsCut(t *testing.T) {
	w := newRefusing(t, second)
	w.open()
	w.tell(givenUp, taken, answered)
	w.balancer.states[51] = packet.BackendGone
	w.config.Peers = w.config.Peers[1:]
	w.set()
	w.tell(told{"a", numbered(asking, asked, packet.ACK, 7, 1001, clock+3, 500), "a", "tcp " + asked + " > " + asking + " R 1001 0"})

	w = newRefusing(t, second)
	w.open()
	w.tell(givenUp, taken, answered)
	w.tell(continued[:2]...)
	w.tell(told{"node-2", abandons(second, asking, 90011), "a", "tcp " + asked + " > " + asking + " R 1011 0"})
	w.path.flows.Range(func(e *flow.Entry, i flow.Info) bool {
		if i.State != flow.Reset {
			t.Errorf("the flow is in %v", i.State)
		}
		return true
	})
	w.silent()
}

// TestPortAgain: the next connection with the tuples of one that was taken over is nobody's successor.
func TestPortAgain(t *testing.T) {
	w := newRefusing(t, second)
	w.open()
	w.tell(givenUp, taken, answered)
	w.tell(continued...)
	w.tell(told{"a", numbered(asking, asked, packet.ACK|packet.FIN, 9, 1012, clock+4, 511), "link", "node-2 tcp " + asking + " > " + second + " FA 9 90012 16909064 81"})
	w.open()
	w.tell(told{"b", numbered(first, asking, packet.ACK|packet.PSH, 1001, 7, 510, clock+1), "a", "tcp " + asked + " > " + asking + " PA 1001 7 510 16909061"})
	w.silent()
}

func TestTakeOverAllocatesNothing(t *testing.T) {
	w, _ := hotNode(t)
	w.path.snapshot.Load().balancer = &hotBalancer{}
	w.path.another = func(*packet.Tuple, []uint64) packet.Choice { return picked(5, second) }
	frames := [][]byte{}
	for _, s := range []netstacktest.Spec{synSpec(asking, asked), numbered(asking, asked, packet.ACK, 7, 1001, clock+1, 500)} {
		frames = append(frames, s.Frame(w.from.MAC, tap.RouterMAC))
	}
	accepts, resets := accepting(first, asking, 1000, 500).IP(), abandons(first, asking, 1001).IP()
	takes, ends := accepting(second, asking, 90000, 70).IP(), abandons(second, asking, 90001).IP()
	ends[20+13] |= packet.ACK // what acknowledges nothing of its client is no refusal
	buf, batch, ip, from := make([]byte, packet.MaxFrame), make([][]byte, 1), make([]byte, 100), w.from
	relayed := func(b []byte) { w.fromRelay(ip[:copy(ip[:cap(ip)], b)], packet.VNetHdr{}) }
	own := func(frame []byte) { w.from = from; buf = w.fromTAP(buf[:copy(buf[:cap(buf)], frame)]) }
	peers := func(b []byte) { batch[0] = ip[:copy(ip[:cap(ip)], b)]; w.fromLink(node2, batch) }
	if n := testing.AllocsPerRun(100, func() {
		own(frames[0])
		relayed(accepts)
		own(frames[1])
		relayed(resets)
		peers(takes)
		own(frames[1])
		peers(ends)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := w.drops[Retried].Load(); n < 100 {
		t.Errorf("%d were taken over: %v", n, w.path.Stats())
	}
}
