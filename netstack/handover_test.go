package netstack

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// run runs the path until the test ends.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.path.Run(ctx) })
	w.t.Cleanup(func() { cancel(); running.Wait() })
}

// state returns the state of the flow with a tuple in a space; 0 when there is none.
func (w *world) state(s netstacktest.Spec, space uint32) flow.State {
	var hit flow.Hit
	t := packet.Tuple{Src: packet.AddrFrom(s.Src.Addr()), Dst: packet.AddrFrom(s.Dst.Addr()), SrcPort: s.Src.Port(), DstPort: s.Dst.Port(), Proto: s.Proto, Space: space}
	if !w.path.flows.Peek(&t, &hit) {
		return 0
	}
	return hit.State
}

// A pod that only waits is answered by the next gateway, from this node to another and back. That is told of the flow.
func TestEgressHandover(t *testing.T) {
	const S, A, SA, F = packet.SYN, packet.ACK, packet.SYN | packet.ACK, packet.FIN
	for name, c := range map[string]struct {
		pod, server, egress string
		udp                 bool
		says                []uint8 // flags of the pod's last segments
		state               flow.State
		flags               string // of the notice
	}{
		"a connection":                     {"10.244.1.10:1000", "198.51.100.1:443", "203.0.113.50:1000", false, []uint8{A}, flow.Established, ""},
		"one of IPv6":                      {"[fd00:10:244:1::10]:1000", "[2001:db8:c::1]:443", "[2001:db8:1b::50]:1000", false, []uint8{A}, flow.Established, ""},
		"one that the pod has half closed": {"10.244.1.10:1000", "198.51.100.1:443", "203.0.113.50:1000", false, []uint8{A, F | A}, flow.FinOriginal, "F"},
		"datagrams":                        {"10.244.1.10:1000", "198.51.100.1:443", "203.0.113.50:1000", true, nil, flow.Replied, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEgressWorld(t)
			w.run()
			here, there := exit.Gateway{Here: true}, exit.Gateway{Peer: node2}
			kind, flags := "tcp", func(f string) string { return " " + f }
			question, answer := segment(c.pod, c.server, S), segment(c.server, c.egress, SA)
			if c.udp {
				kind, flags = "udp", func(string) string { return "" }
				question, answer = datagram(c.pod, c.server), datagram(c.server, c.egress)
			}
			out, back := kind+" "+c.egress+" > "+c.server, kind+" "+c.server+" > "+c.pod
			w.exchange(exchange{"a", question, "host", out + flags("S")})
			w.exchange(exchange{"host", answer, "a", back + flags("SA")})
			for _, f := range c.says {
				w.exchange(exchange{"a", segment(c.pod, c.server, f), "host", out + flags(flagsOf(&packet.Packet{TCPFlags: f}))})
			}
			answer.TCPFlags &^= S
			w.path.SetExits(exit.New(egressConfig(there, there)))
			w.expect("link", encapOut+out+flags(c.flags))
			if got := w.state(answer, spaceOf(node2)); got != c.state {
				t.Errorf("the flow is %v, want %v", got, c.state)
			}
			w.exchange(exchange{"node-2 encap", answer, "a", back + flags("A")})
			w.path.SetExits(exit.New(egressConfig(here, there)))
			w.until(func() bool { return w.state(answer, spaceRouted) == c.state })
			w.exchange(exchange{"host", answer, "a", back + flags("A")})
		})
	}
}

// What a Service has led outside keeps its backend.
func TestEgressHandoverKeepsBackend(t *testing.T) {
	const S, A, SA, pod, outside, seen = packet.SYN, packet.ACK, packet.SYN | packet.ACK, "10.244.1.10:1000", "198.51.100.99:8080", "203.0.113.50:1000"
	w := newEgressWorld(t)
	w.run()
	w.exchange(exchange{"a", segment(pod, "203.0.113.10:80", S), "host", "tcp " + seen + " > " + outside + " S"})
	w.exchange(exchange{"host", segment(outside, seen, SA), "a", "tcp 203.0.113.10:80 > " + pod + " SA"})
	w.exchange(exchange{"a", segment(pod, "203.0.113.10:80", A), "host", "tcp " + seen + " > " + outside + " A"})
	w.balancer.picks[ap("203.0.113.10:80")] = picked(12, "198.51.100.98:8080")
	w.path.SetExits(exit.New(egressConfig(exit.Gateway{Peer: node2}, exit.Gateway{Peer: node2})))
	w.expect("link", encapOut+"tcp "+seen+" > "+outside+" ")
	w.exchange(exchange{"node-2 encap", segment(outside, seen, A), "a", "tcp 203.0.113.10:80 > " + pod + " A"})
}

// While there is no gateway, flows stay as they are, and those that nobody has answered or both ends have closed are
// told to nobody.
func TestEgressHandoverLeavesOut(t *testing.T) {
	const server = "198.51.100.1:443"
	w := newEgressWorld(t)
	w.exchange(exchange{"a", datagram("10.244.1.10:1000", server), "host", "udp 203.0.113.50:1000 > " + server})
	w.exchange(exchange{"a", datagram("10.244.1.10:2000", server), "host", "udp 203.0.113.50:2000 > " + server})
	answer := datagram(server, "203.0.113.50:1000")
	w.exchange(exchange{"host", answer, "a", "udp " + server + " > 10.244.1.10:1000"})
	orig := packet.Tuple{Src: packet.AddrFrom(ap("10.244.1.10:0").Addr()), Dst: packet.AddrFrom(ap(server).Addr()), SrcPort: 1000, DstPort: 443, Proto: packet.UDP}
	for _, none := range []exit.Gateway{{}, {Peer: stock}, {Peer: 77}} {
		w.path.SetExits(exit.New(egressConfig(none, none)))
		w.path.handOver(&orig)
		if got := w.state(answer, spaceRouted); got != flow.Replied {
			t.Errorf("gateway %+v: the flow is %v", none, got)
		}
	}
	stranger := orig
	stranger.SrcPort = 3000
	w.path.SetExits(exit.New(egressConfig(exit.Gateway{Peer: node2}, exit.Gateway{})))
	w.path.handOver(&stranger)
	w.silent()
	w.run()
	w.expect("link", encapOut+"udp 203.0.113.50:1000 > "+server)
	w.expect("link", encapOut+"udp 203.0.113.50:1000 > "+server) // again, and nothing of the other port between
}

// A notice of another node makes the flow known here, and nothing leaves for it.
func TestEgressNotice(t *testing.T) {
	const server, server6 = "198.51.100.1:443", "[2001:db8:c::1]:443"
	notice := func(proto packet.Proto, src, dst string, flags uint8) netstacktest.Spec {
		return netstacktest.Spec{Src: ap(src), Dst: ap(dst), Proto: proto, TCPFlags: flags, NoHop: true}
	}
	for name, c := range map[string]struct {
		notice netstacktest.Spec
		want   flow.State
		answer string
	}{
		"a connection":      {notice(packet.TCP, "203.0.113.50:1000", server, 0), flow.Established, "tcp 198.51.100.1:443 > 203.0.113.50:1000 A"},
		"one of IPv6":       {notice(packet.TCP, "[2001:db8:1b::50]:1000", server6, 0), flow.Established, "tcp [2001:db8:c::1]:443 > [2001:db8:1b::50]:1000 A"},
		"a half closed one": {notice(packet.TCP, "203.0.113.50:1000", server, packet.FIN), flow.FinOriginal, "tcp 198.51.100.1:443 > 203.0.113.50:1000 A"},
		"datagrams":         {notice(packet.UDP, "203.0.113.50:1000", server, 0), flow.Replied, "udp 198.51.100.1:443 > 203.0.113.50:1000"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEgressWorld(t)
			for i := range uint64(3) {
				w.from("node-2 encap", c.notice)
				if got := w.path.Stats().Verdicts["noted"]; got != i+1 {
					t.Fatalf("%d notices noted, want %d: %v", got, i+1, w.path.Stats())
				}
			}
			answer := netstacktest.Spec{Src: c.notice.Dst, Dst: c.notice.Src, Proto: c.notice.Proto, TCPFlags: packet.ACK}
			if got := w.state(answer, spaceRouted); got != c.want {
				t.Errorf("the flow is %v, want %v", got, c.want)
			}
			w.exchange(exchange{"host", answer, "link", encapOut + c.answer})
			w.silent()
		})
	}
	for name, c := range map[string]struct {
		from   string
		notice netstacktest.Spec
		why    DropReason
	}{
		"by a node that is not the gateway": {"node-2 encap", notice(packet.TCP, "203.0.113.51:1000", server, 0), BadEncap},
		"of no egress address":              {"node-2 encap", notice(packet.TCP, "203.0.113.52:1000", server, 0), BadEncap},
		"not encapsulated":                  {"node-2", notice(packet.TCP, "203.0.113.50:1000", server, 0), SpoofedPeer},
		"to where pods may not dial":        {"node-2 encap", notice(packet.TCP, "203.0.113.50:1000", "192.0.2.66:443", 0), EgressDenied},
		"by a pod":                          {"b", notice(packet.TCP, "10.244.1.11:1000", server, 0), NoRoute},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEgressWorld(t)
			w.from(c.from, c.notice)
			w.dropped(c.why)
			w.silent()
		})
	}
}

// Handing over allocates nothing, since a node may have hundreds of thousands of flows.
func TestHandOverAllocatesNothing(t *testing.T) {
	w := newEgressWorld(t)
	link := &counting{}
	w.path.link = link
	orig := packet.Tuple{Src: packet.AddrFrom(ap("10.244.1.11:0").Addr()), Dst: packet.AddrFrom(ap("198.51.100.1:443").Addr()), SrcPort: 1000, DstPort: 443, Proto: packet.UDP}
	w.from("b", datagram("10.244.1.11:1000", "198.51.100.1:443"))
	w.until(func() bool { return link.sent.Load() == 1 })
	w.exchange(exchange{"node-2 encap", datagram("198.51.100.1:443", "203.0.113.51:1000"), "b", "udp 198.51.100.1:443 > 10.244.1.11:1000"})
	if n := testing.AllocsPerRun(100, func() { w.path.handOver(&orig) }); n != 0 || link.sent.Load() != 102 {
		t.Errorf("%v allocations; %d packets were sent, want 102", n, link.sent.Load())
	}
}

// counting is a Link that counts packets.
type counting struct{ sent atomic.Int64 }

func (l *counting) Send(*packet.Packet, uint64, *packet.Encap) { l.sent.Add(1) }
func (l *counting) MTU(uint64) int                             { return 1440 }
