package flow

import (
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

func TestStates(t *testing.T) {
	const S, A, F, R = packet.SYN, packet.ACK, packet.FIN, packet.RST
	handshake := []pkt{{Original, S, SynSent}, {Reply, S | A, SynReceived}, {Original, A, Established}}
	for _, c := range []struct {
		name    string
		proto   packet.Proto
		port    uint16
		packets []pkt
		timeout uint32
	}{
		{"syn", packet.TCP, 80, handshake[:1], 60},
		{"syn ack", packet.TCP, 80, handshake[:2], 60},
		{"established", packet.TCP, 80, handshake, 86400},
		{"in the middle", packet.TCP, 80, []pkt{{Original, A, SynSent}, {Reply, A, Established}}, 86400},
		{"half closed", packet.TCP, 80, append(handshake[:3:3], pkt{Original, F | A, FinOriginal}, pkt{Reply, A, FinOriginal}), 3600},
		{"half closed, other", packet.TCP, 80, append(handshake[:3:3], pkt{Reply, F | A, FinReply}, pkt{Reply, F | A, FinReply}), 3600},
		{"closed", packet.TCP, 80, append(handshake[:3:3], pkt{Reply, F | A, FinReply}, pkt{Original, F | A, TimeWait}, pkt{Reply, A, TimeWait}), 62},
		{"reset", packet.TCP, 80, append(handshake[:3:3], pkt{Original, R, Reset}, pkt{Reply, A, Reset}), 120},
		// A reset outside the window, which its receiver drops (projectcalico/calico#9605).
		{"reset in vain", packet.TCP, 80, append(handshake[:3:3], pkt{Reply, R, Reset}, pkt{Reply, A, Reset}, pkt{Original, A, SynSent}, pkt{Reply, A, Established}), 86400},
		{"reset, and the other knows it late", packet.TCP, 80, append(handshake[:3:3], pkt{Original, R, Reset}, pkt{Reply, A, Reset}, pkt{Reply, A, Reset}), 120},
		// Both ends open the connection at once (RFC 9293 figure 7, smoltcp-rs/smoltcp#1001).
		{"opened by both", packet.TCP, 80, []pkt{{Original, S, SynSent}, {Reply, S, SynReceived}, {Original, S | A, SynReceived}, {Reply, S | A, SynReceived}, {Original, A, Established}}, 86400},
		// The answer comes long after the end of the request, and then goes on for long (kubernetes/kubernetes#32551).
		{"half closed for hours", packet.TCP, 80, append(handshake[:3:3], pkt{Original, F | A, FinOriginal}, pkt{Reply, A, FinOriginal}, pkt{Reply, A, FinOriginal}, pkt{Original, A, FinOriginal}), 3600},
		{"udp", packet.UDP, 80, []pkt{{Original, 0, Unreplied}, {Original, 0, Unreplied}}, 30},
		{"udp replied", packet.UDP, 80, []pkt{{Original, 0, Unreplied}, {Reply, 0, Replied}, {Original, 0, Replied}}, 120},
		{"dns", packet.UDP, 53, []pkt{{Original, 0, Unreplied}, {Reply, 0, Answered}}, 10},
		// INIT, INIT ACK, COOKIE ECHO and DATA, then a shutdown, as packet.sctpFlags tells them.
		{"sctp", packet.SCTP, 80, handshake, 86400},
		{"sctp init", packet.SCTP, 80, handshake[:1], 60},
		{"sctp shut down", packet.SCTP, 80, append(handshake[:3:3], pkt{Original, F | A, FinOriginal}, pkt{Reply, A, FinOriginal}, pkt{Reply, F | A, TimeWait}, pkt{Original, F | A, TimeWait}), 62},
		{"sctp aborted", packet.SCTP, 80, append(handshake[:3:3], pkt{Reply, R | A, Reset}), 120},
		{"echo", packet.ICMPv6, 7, []pkt{{Original, 0, Echo}, {Reply, 0, Echo}}, 30},
		{"esp", 50, 0, []pkt{{Original, 0, Other}, {Reply, 0, Other}}, 600},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, clock, _ := newTable(t, 10)
			orig := tuple(c.proto, "[fd00::1]:999", "[fd00::2]:0")
			orig.DstPort = c.port
			e := direct(orig)
			e.Segment = tcp(c.packets[0].flags)
			mustInsert(t, table, e)
			var hit Hit
			for i, p := range c.packets {
				tp := [2]packet.Tuple{e.Orig, e.Reply}[p.dir]
				if !table.Lookup(&tp, tcp(p.flags), &hit) || hit.State != p.want {
					t.Fatalf("packet %d: state %v, want %v", i, hit.State, p.want)
				}
				table.Count(&hit, 40, tcp(p.flags))
			}
			// Every packet refreshes the flow, but Peek does not.
			advance(table, clock, c.timeout)
			last := c.packets[len(c.packets)-1]
			tp := [2]packet.Tuple{e.Orig, e.Reply}[last.dir]
			if !table.Lookup(&tp, tcp(last.flags), &hit) || hit.State != last.want {
				t.Fatal("the flow expired too early")
			}
			advance(table, clock, c.timeout-1)
			if !table.Peek(&e.Orig, &hit) {
				t.Fatal("Lookup did not refresh the flow")
			}
			clock.now += 2
			table.now.Store(clock.now) // not swept yet
			if table.Lookup(&e.Orig, tcp(packet.ACK), &hit) || table.Lookup(&e.Reply, tcp(packet.ACK), &hit) {
				t.Fatal("found after its time")
			}
			if advance(table, clock, 0) != 1 || table.Stats().Len != 0 {
				t.Fatal("Sweep did not free the flow")
			}
		})
	}
}

// TestResetTime: a reset that ends nothing but an attempt is forgotten soon. One that may have been in vain is
// remembered for longer, until the ends have said something or not (projectcalico/calico#13880).
func TestResetTime(t *testing.T) {
	const S, A, F, R = packet.SYN, packet.ACK, packet.FIN, packet.RST
	open := []pkt{{Original, S, SynSent}, {Reply, S | A, SynReceived}, {Original, A, Established}}
	for name, c := range map[string]struct {
		packets []pkt
		seconds uint32
	}{
		"stray":                            {[]pkt{{Original, R, Reset}}, 10},
		"refused":                          {append(open[:1:1], pkt{Reply, R | A, Reset}), 10},
		"given up":                         {append(open[:2:2], pkt{Original, R, Reset}), 10},
		"established":                      {append(open[:3:3], pkt{Reply, R, Reset}), 120},
		"half closed":                      {append(open[:3:3], pkt{Reply, F | A, FinReply}, pkt{Original, R, Reset}), 120},
		"established, and the other knows": {append(open[:3:3], pkt{Reply, R, Reset}, pkt{Original, A, SynSent}, pkt{Reply, R, Reset}), 10},
	} {
		t.Run(name, func(t *testing.T) {
			table, clock, _ := newTable(t, 10)
			e := direct(tuple(packet.TCP, "10.0.0.1:1000", "10.0.0.2:80"))
			e.Segment = tcp(c.packets[0].flags)
			mustInsert(t, table, e)
			var hit Hit
			for _, p := range c.packets[1:] {
				tp := [2]packet.Tuple{e.Orig, e.Reply}[p.dir]
				if !table.Lookup(&tp, tcp(p.flags), &hit) || hit.State != p.want {
					t.Fatalf("state %v, want %v", hit.State, p.want)
				}
				table.Count(&hit, 40, tcp(p.flags))
			}
			advance(table, clock, c.seconds)
			if !table.Peek(&e.Orig, &hit) || hit.State != Reset {
				t.Fatalf("not there after %d s", c.seconds)
			}
			if advance(table, clock, 1) != 1 || table.Peek(&e.Orig, &hit) {
				t.Fatalf("there after %d s", c.seconds+1)
			}
		})
	}
}

func TestSYNOnEndedFlow(t *testing.T) {
	for _, end := range [][]pkt{
		{{Reply, packet.RST, Reset}},
		{{Original, packet.FIN, FinOriginal}, {Reply, packet.FIN, TimeWait}},
	} {
		table, _, _ := newTable(t, 10)
		e := direct(tuple(packet.TCP, "10.0.0.1:1000", "10.0.0.2:80"))
		mustInsert(t, table, e)
		var hit Hit
		for _, p := range end {
			tp := [2]packet.Tuple{e.Orig, e.Reply}[p.dir]
			table.Lookup(&tp, tcp(p.flags), &hit)
		}
		for _, c := range []struct {
			tp    packet.Tuple
			flags uint8
			want  State
		}{
			{e.Reply, packet.ACK, end[len(end)-1].want},
			{e.Reply, packet.SYN | packet.ACK, end[len(end)-1].want},
			{e.Reply, packet.SYN, Closed},
			{e.Orig, packet.SYN | packet.ECE | packet.CWR, Closed},
		} {
			if !table.Lookup(&c.tp, tcp(c.flags), &hit) || hit.State != c.want {
				t.Errorf("flags %#x: %v, want %v", c.flags, hit.State, c.want)
			}
		}
		if !table.Delete(hit.Ref, &e.Orig) {
			t.Fatal("cannot delete")
		}
		e.Segment = tcp(packet.SYN)
		mustInsert(t, table, e)
		if !table.Lookup(&e.Orig, tcp(packet.SYN), &hit) || hit.State != SynSent {
			t.Errorf("new flow: %v", hit.State)
		}
	}
}

// TestSYNOnLiveFlow: a SYN of the opener is reported as the first packet of a connection, whatever the state, and
// changes no state. So the caller asks again where new connections go.
func TestSYNOnLiveFlow(t *testing.T) {
	const S, A, F = packet.SYN, packet.ACK, packet.FIN
	open := []pkt{{Reply, S | A, SynReceived}, {Original, A, Established}}
	for _, before := range [][]pkt{nil, open[:1], open, append(open[:2:2], pkt{Reply, F | A, FinReply})} {
		table, _, _ := newTable(t, 10)
		e := direct(tuple(packet.TCP, "10.0.0.1:1000", "10.0.0.2:80"))
		e.Segment, e.Checked = tcp(S), 7
		ref, want := mustInsert(t, table, e), SynSent
		var hit Hit
		for _, p := range before {
			tp := [2]packet.Tuple{e.Orig, e.Reply}[p.dir]
			table.Lookup(&tp, tcp(p.flags), &hit)
			want = p.want
		}
		if !table.Lookup(&e.Orig, tcp(S), &hit) || hit.Ref != ref || hit.State != SynSent || hit.Checked != 0 {
			t.Errorf("in %v: %v, checked in %d", want, hit.State, hit.Checked)
		}
		if !table.Peek(&e.Orig, &hit) || hit.State != want || hit.Checked != 7 {
			t.Errorf("after it: %v, want %v; checked in %d", hit.State, want, hit.Checked)
		}
		if table.Lookup(&e.Reply, tcp(S), &hit); hit.Checked != 7 {
			t.Errorf("in %v, from the other side: checked in %d", want, hit.Checked)
		}
	}
}

// TestRefused: the reset by which a backend answers the SYN of a TCP flow is told apart from all others, and so is that
// by which it gives up what it has just accepted. The flow is reset in any case.
func TestRefused(t *testing.T) {
	const S, A, R, F = packet.SYN, packet.ACK, packet.RST, packet.FIN
	for name, c := range map[string]struct {
		proto   packet.Proto
		backend uint64
		packets []pkt // after the SYN; the last one is looked at
	}{
		"refused":                      {packet.TCP, 1, []pkt{{Reply, R | A, Refused}}},
		"twice":                        {packet.TCP, 1, []pkt{{Reply, R | A, Refused}, {Reply, R | A, Reset}}},
		"without a backend":            {packet.TCP, 0, []pkt{{Reply, R | A, Reset}}},
		"by the client":                {packet.TCP, 1, []pkt{{Original, R, Reset}}},
		"answered":                     {packet.TCP, 1, []pkt{{Reply, S | A, Accepted}, {Reply, R | A, Reset}}},
		"answered twice":               {packet.TCP, 1, []pkt{{Reply, S | A, Accepted}, {Reply, S | A, SynReceived}}},
		"open":                         {packet.TCP, 1, []pkt{{Reply, S | A, Accepted}, {Original, A, Established}, {Reply, R, Abandoned}}},
		"open without a backend":       {packet.TCP, 0, []pkt{{Reply, S | A, SynReceived}, {Original, A, Established}, {Reply, R, Reset}}},
		"open and reset by the client": {packet.TCP, 1, []pkt{{Reply, S | A, Accepted}, {Original, A, Established}, {Original, R, Reset}}},
		"acknowledged":                 {packet.TCP, 1, []pkt{{Reply, S | A, Accepted}, {Original, A, Established}, {Reply, A, Established}, {Reply, R, Reset}}},
		"half closed":                  {packet.TCP, 1, []pkt{{Reply, S | A, Accepted}, {Original, A, Established}, {Original, F | A, FinOriginal}, {Reply, R, Reset}}},
		"open and reset before":        {packet.TCP, 1, []pkt{{Reply, S | A, Accepted}, {Original, A, Established}, {Reply, R | A, Abandoned}, {Original, A, SynSent}, {Reply, R | A, Reset}}},
		"an association":               {packet.SCTP, 1, []pkt{{Reply, S | A, SynReceived}}},
		"an association that cannot":   {packet.SCTP, 1, []pkt{{Reply, R | A, Reset}}},
	} {
		t.Run(name, func(t *testing.T) {
			table, _, _ := newTable(t, 10)
			orig := tuple(c.proto, "10.0.0.1:999", "10.0.0.2:80")
			if _, res := table.Insert(&Entry{Orig: orig, Reply: orig.Reverse(), Backend: c.backend, Segment: tcp(S)}); res != Inserted {
				t.Fatal(res)
			}
			for i, p := range c.packets {
				at := orig
				if p.dir == Reply {
					at = orig.Reverse()
				}
				var hit Hit
				if !table.Lookup(&at, tcp(p.flags), &hit) || hit.State != p.want {
					t.Fatalf("packet %d: %v, want %v", i, hit.State, p.want)
				}
				if stored := hit; table.Peek(&at, &stored) && stored.State >= Closed {
					t.Error("it is stored")
				}
				table.Count(&hit, 40, tcp(p.flags))
			}
		})
	}
}
