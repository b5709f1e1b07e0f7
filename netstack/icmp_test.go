package netstack

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

// icmp returns an ICMP message of the family of src.
func icmp(src, dst string, kind, code uint8, body []byte) netstacktest.Spec {
	s := netstacktest.Spec{
		Src: netip.AddrPortFrom(netip.MustParseAddr(src), 0), Dst: netip.AddrPortFrom(netip.MustParseAddr(dst), 0),
		Proto: packet.ICMPv4, ICMPType: kind, ICMPCode: code, Payload: body,
	}
	if s.Src.Addr().Is6() {
		s.Proto = packet.ICMPv6
	}
	return s
}

// silent fails the test when anybody got a packet. All packets that were sent must have been counted before.
func (w *world) silent() {
	w.t.Helper()
	for name, d := range w.devices {
		if len(d.Frames()) > 0 {
			var p packet.Packet
			p.ParseFrame(<-d.Frames())
			w.t.Errorf("%s got %s", name, describe(w.t, &p))
		}
	}
	if len(w.link.Sent()) > 0 {
		w.t.Errorf("the link got %s", w.describeSent(<-w.link.Sent()))
	}
}

// TestLinkOnly: messages that hosts believe only from neighbours pass between no two ends: neither pods of this node,
// nor the host, nor other nodes.
func TestLinkOnly(t *testing.T) {
	w := newWorld(t)
	w.exchange(exchange{"a", datagram("10.244.1.10:1000", "10.244.1.11:80"), "b", "udp 10.244.1.10:1000 > 10.244.1.11:80"})
	quoted := datagram("10.244.1.10:1000", "10.244.1.11:80").IP()
	sources := map[string][2]string{
		"b": {"10.244.1.11", "fd00:10:244:1::11"}, "host": {"172.31.0.11", ""}, "node-2": {"10.244.2.10", "fd00:10:244:2::10"},
		"stock": {"10.244.9.7", ""}, "node-2 encap": {"198.51.100.7", "2001:db8::7"},
	}
	var sent uint64
	for from, src := range sources {
		if src[0] != "" {
			for _, kind := range []uint8{5, 9, 10} {
				w.from(from, icmp(src[0], "10.244.1.10", kind, 1, quoted))
				sent++
			}
		}
		for kind := uint8(133); kind <= 137 && src[1] != "" && from != "node-2 encap"; kind++ {
			body := append(netip.MustParseAddr("fd00:10:244:1::11").AsSlice(), 2, 1, 2, 0, 0, 0, 0, 2)
			s := icmp(src[1], "fd00:10:244:1::10", kind, 0, body)
			w.from(from, s)
			sent++
		}
	}
	w.counted(LinkOnly, sent)
	w.silent()
	if n := w.path.flows.Stats().Len; n != 1 {
		t.Errorf("%d flows are in the table, want only the first one", n)
	}
}

// TestNeighborSolicitation: a pod's own solicitation is still answered, for every address.
func TestNeighborSolicitation(t *testing.T) {
	w := newWorld(t)
	body := append(netip.MustParseAddr("fd00:10:244:1::11").AsSlice(), 1, 1, 2, 0, 0, 0, 0, 1)
	frame := icmp("fd00:10:244:1::10", "ff02::1:ff00:11", 135, 0, body).Frame(w.macs["a"], packet.MAC{0x33, 0x33, 0xff, 0, 0, 0x11})
	frame[packet.HeadLen+7] = 255 // the hop limit that shows that no router was in between
	w.devices["a"].Send(frame)
	w.expect("a", "icmp 136 fd00:10:244:1::11 > fd00:10:244:1::10 id 0")
}

// TestSourceRoute: packets with a source route are dropped, both from pods and from other nodes.
func TestSourceRoute(t *testing.T) {
	w := newWorld(t)
	option := func(s netstacktest.Spec, opt ...byte) []byte {
		ip := s.IP()
		ip = append(ip[:20:20], append(opt, ip[20:]...)...)
		ip[0] = 0x40 | byte(5+len(opt)/4)
		ip[2], ip[3] = byte(len(ip)>>8), byte(len(ip))
		ip[10], ip[11] = 0, 0
		sum := ^packet.Checksum(ip[:20+len(opt)], 0)
		ip[10], ip[11] = byte(sum>>8), byte(sum)
		return ip
	}
	bad := [][]byte{{131, 7, 4, 10, 244, 1, 11, 0}, {137, 7, 4, 10, 244, 1, 11, 0}, {7, 9, 4, 0}, {1, 1, 1, 148}}
	for _, opt := range bad {
		frame := datagram("10.244.1.10:1000", "10.244.1.11:80").Frame(w.macs["a"], packet.MAC{})[:packet.HeadLen]
		w.devices["a"].Send(append(frame, option(datagram("10.244.1.10:1000", "10.244.1.11:80"), opt...)...))
		w.path.FromLink(node2, [][]byte{option(datagram("10.244.2.10:1000", "10.244.1.11:80"), opt...)})
	}
	w.counted(Malformed, uint64(2*len(bad)))
	w.silent()
	// Another option is no reason to drop a packet.
	w.path.FromLink(node2, [][]byte{option(datagram("10.244.2.10:1000", "10.244.1.11:80"), 148, 4, 0, 0)})
	w.expect("b", "udp 10.244.2.10:1000 > 10.244.1.11:80")
}

// about returns ICMP errors of every kind from src to dst about a packet.
func about(src, dst string, quoted netstacktest.Spec) (all []netstacktest.Spec) {
	kinds := [][2]uint8{{3, 1}, {3, 3}, {3, 4}, {3, 13}, {11, 0}, {12, 0}}
	if netip.MustParseAddr(src).Is6() {
		kinds = [][2]uint8{{1, 0}, {1, 4}, {2, 0}, {3, 0}, {4, 0}}
	}
	for _, k := range kinds {
		all = append(all, icmp(src, dst, k[0], k[1], quoted.IP()))
	}
	return all
}

// known lists flows of all kinds, about which errors can be sent.
var known = []exchange{
	{"a", segment("10.244.1.10:1000", "10.244.1.11:80", packet.SYN), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:80 S"},
	{"a", datagram("10.244.1.10:1000", "10.244.2.10:80"), "link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:80"},
	{"a", datagram("10.244.1.10:1001", "10.96.0.5:53"), "link", "node-2 udp 10.244.1.10:1001 > 10.244.2.10:5353"},
	{"a", datagram("10.244.1.10:1000", "10.244.9.7:80"), "link", "stock udp 10.244.1.10:1000 > 10.244.9.7:80"},
	{"a", datagram("10.244.1.10:1000", "10.96.0.1:80"), "b", "udp 10.244.1.10:1000 > 10.244.1.11:8080"},
	{"a", datagram("10.244.1.10:1000", "172.31.0.11:22"), "host", "udp 10.244.1.10:1000 > 172.31.0.11:22"},
	{"host", datagram("172.31.0.11:1000", "10.244.1.11:80"), "b", "udp 172.31.0.11:1000 > 10.244.1.11:80"},
	{"node-2", datagram("10.244.2.10:1000", "10.244.1.10:80"), "a", "udp 10.244.2.10:1000 > 10.244.1.10:80"},
	{"node-2 encap", datagram("198.51.100.7:4000", "10.244.1.11:8080"), "b", "udp 198.51.100.7:4000 > 10.244.1.11:8080"},
	{"a", datagram("[fd00:10:244:1::10]:1000", "[fd00:10:244:1::11]:80"), "b", "udp [fd00:10:244:1::10]:1000 > [fd00:10:244:1::11]:80"},
	{"a", datagram("[fd00:10:244:1::10]:1000", "[fd00:10:244:2::10]:80"), "link", "node-2 udp [fd00:10:244:1::10]:1000 > [fd00:10:244:2::10]:80"},
	{"a", datagram("[fd00:10:244:1::10]:1000", "[fd00:10:96::1]:80"), "b", "udp [fd00:10:244:1::10]:1000 > [fd00:10:244:1::11]:8080"},
	{"node-2", datagram("[fd00:10:244:2::10]:1000", "[fd00:10:244:1::10]:80"), "a", "udp [fd00:10:244:2::10]:1000 > [fd00:10:244:1::10]:80"},
}

// TestForgedErrors: an ICMP error is dropped when its sender is no end of the flow of the quoted packet, and when its
// destination is not the other end.
func TestForgedErrors(t *testing.T) {
	for _, c := range []struct {
		name, from string
		errors     []netstacktest.Spec
	}{
		{"a pod, about another's flow to another node", "b", about("10.244.1.11", "10.244.1.10", datagram("10.244.1.10:1000", "10.244.2.10:80"))},
		{"the same, IPv6", "b", about("fd00:10:244:1::11", "fd00:10:244:1::10", datagram("[fd00:10:244:1::10]:1000", "[fd00:10:244:2::10]:80"))},
		{"a pod, about another's translated flow", "b", about("10.244.1.11", "10.244.1.10", datagram("10.244.1.10:1001", "10.244.2.10:5353"))},
		{"the same, before translation", "b", about("10.244.1.11", "10.244.1.10", datagram("10.244.1.10:1001", "10.96.0.5:53"))},
		{"a pod, about its own flow before translation", "b", about("10.244.1.11", "10.244.1.10", datagram("10.244.1.10:1000", "10.96.0.1:80"))},
		{"the same, IPv6", "b", about("fd00:10:244:1::11", "fd00:10:244:1::10", datagram("[fd00:10:244:1::10]:1000", "[fd00:10:96::1]:80"))},
		{"a pod, to another node about another's flow", "b", about("10.244.1.11", "10.244.2.10", datagram("10.244.2.10:1000", "10.244.1.10:80"))},
		{"the same, IPv6", "b", about("fd00:10:244:1::11", "fd00:10:244:2::10", datagram("[fd00:10:244:2::10]:1000", "[fd00:10:244:1::10]:80"))},
		{"a pod, about its own flow to somebody else", "b", about("10.244.1.11", "10.244.1.10", datagram("172.31.0.11:1000", "10.244.1.11:80"))},
		{"a pod, about its own flow with the outside to another pod", "b", about("10.244.1.11", "10.244.1.10", datagram("198.51.100.7:4000", "10.244.1.11:8080"))},
		{"a pod, about the host's flow", "b", about("10.244.1.11", "10.244.1.10", datagram("10.244.1.10:1000", "172.31.0.11:22"))},
		{"a pod, about what it was never sent", "b", about("10.244.1.11", "10.244.1.10", datagram("10.244.1.10:9", "10.244.1.11:9"))},
		{"a pod, about what it sent itself", "b", about("10.244.1.11", "10.244.1.10", segment("10.244.1.11:80", "10.244.1.10:1000", packet.ACK))},
		{"the host, about a pod's flow", "host", about("172.31.0.11", "10.244.1.10", segment("10.244.1.10:1000", "10.244.1.11:80", packet.SYN))},
		{"another node, about a flow of pods here", "node-2", about("10.244.2.10", "10.244.1.10", segment("10.244.1.10:1000", "10.244.1.11:80", packet.SYN))},
		{"the same, IPv6", "node-2", about("fd00:10:244:2::10", "fd00:10:244:1::10", datagram("[fd00:10:244:1::10]:1000", "[fd00:10:244:1::11]:80"))},
		{"another node, about a flow to a third", "node-2", about("10.244.2.10", "10.244.1.10", datagram("10.244.1.10:1000", "10.244.9.7:80"))},
		{"another node, about what it was never sent", "node-2", about("10.244.2.10", "10.244.1.10", datagram("10.244.1.10:9", "10.244.2.10:9"))},
		{"another node, about its own flow to somebody else", "node-2", about("10.244.2.10", "10.244.1.11", datagram("10.244.1.10:1000", "10.244.2.10:80"))},
		{"a client of another node, about a flow of pods here", "node-2 encap", about("198.51.100.7", "10.244.1.10", segment("10.244.1.10:1000", "10.244.1.11:80", packet.SYN))},
		{"a client of another node, about a flow with its node", "node-2 encap", about("198.51.100.7", "10.244.1.10", datagram("10.244.1.10:1000", "10.244.2.10:80"))},
		{"a client of another node, about its own flow to somebody else", "node-2 encap", about("198.51.100.7", "10.244.1.10", datagram("10.244.1.11:8080", "198.51.100.7:4000"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			for _, e := range known {
				w.exchange(e)
			}
			for _, e := range c.errors {
				w.from(c.from, e)
			}
			w.counted(StrayError, uint64(len(c.errors)))
			w.silent()
		})
	}
}

// TestErrorsOfEnds: an ICMP error from the end that got the packet reaches the end that sent it, and quotes the packet
// as it was sent.
func TestErrorsOfEnds(t *testing.T) {
	w := newWorld(t)
	for _, e := range known {
		w.exchange(e)
	}
	for _, c := range []struct {
		from      string
		errors    []netstacktest.Spec
		at, wants string // %s stands for the kind of error
	}{
		{"b", about("10.244.1.11", "10.244.1.10", segment("10.244.1.10:1000", "10.244.1.11:80", packet.SYN)),
			"a", "icmp %s 10.244.1.11 > 10.244.1.10 about 10.244.1.10:1000 > 10.244.1.11:80"},
		{"b", about("fd00:10:244:1::11", "fd00:10:244:1::10", datagram("[fd00:10:244:1::10]:1000", "[fd00:10:244:1::11]:80")),
			"a", "icmp %s fd00:10:244:1::11 > fd00:10:244:1::10 about [fd00:10:244:1::10]:1000 > [fd00:10:244:1::11]:80"},
		{"b", about("10.244.1.11", "10.244.1.10", datagram("10.244.1.10:1000", "10.244.1.11:8080")),
			"a", "icmp %s 10.96.0.1 > 10.244.1.10 about 10.244.1.10:1000 > 10.96.0.1:80"},
		{"b", about("fd00:10:244:1::11", "fd00:10:244:1::10", datagram("[fd00:10:244:1::10]:1000", "[fd00:10:244:1::11]:8080")),
			"a", "icmp %s fd00:10:96::1 > fd00:10:244:1::10 about [fd00:10:244:1::10]:1000 > [fd00:10:96::1]:80"},
		{"a", about("10.244.1.10", "10.96.0.1", datagram("10.96.0.1:80", "10.244.1.10:1000")),
			"b", "icmp %s 10.244.1.10 > 10.244.1.11 about 10.244.1.11:8080 > 10.244.1.10:1000"},
		{"b", about("10.244.1.11", "172.31.0.11", datagram("172.31.0.11:1000", "10.244.1.11:80")),
			"host", "icmp %s 10.244.1.11 > 172.31.0.11 about 172.31.0.11:1000 > 10.244.1.11:80"},
		{"host", about("172.31.0.11", "10.244.1.10", datagram("10.244.1.10:1000", "172.31.0.11:22")),
			"a", "icmp %s 172.31.0.11 > 10.244.1.10 about 10.244.1.10:1000 > 172.31.0.11:22"},
		{"node-2", about("10.244.2.10", "10.244.1.10", datagram("10.244.1.10:1000", "10.244.2.10:80")),
			"a", "icmp %s 10.244.2.10 > 10.244.1.10 about 10.244.1.10:1000 > 10.244.2.10:80"},
		// Its stack, for the pod.
		{"node-2", about("10.244.2.1", "10.244.1.10", datagram("10.244.1.10:1000", "10.244.2.10:80")),
			"a", "icmp %s 10.244.2.1 > 10.244.1.10 about 10.244.1.10:1000 > 10.244.2.10:80"},
		{"node-2", about("fd00:10:244:2::10", "fd00:10:244:1::10", datagram("[fd00:10:244:1::10]:1000", "[fd00:10:244:2::10]:80")),
			"a", "icmp %s fd00:10:244:2::10 > fd00:10:244:1::10 about [fd00:10:244:1::10]:1000 > [fd00:10:244:2::10]:80"},
		{"node-2", about("10.244.2.10", "10.244.1.10", datagram("10.244.1.10:1001", "10.244.2.10:5353")),
			"a", "icmp %s 10.96.0.5 > 10.244.1.10 about 10.244.1.10:1001 > 10.96.0.5:53"},
		{"stock", about("10.244.9.7", "10.244.1.10", datagram("10.244.1.10:1000", "10.244.9.7:80")),
			"a", "icmp %s 10.244.9.7 > 10.244.1.10 about 10.244.1.10:1000 > 10.244.9.7:80"},
		{"b", about("10.244.1.11", "198.51.100.7", datagram("198.51.100.7:4000", "10.244.1.11:8080")),
			"link", "node-2 encap 10.244.1.1 > 10.244.2.1: icmp %s 10.244.1.11 > 198.51.100.7 about 198.51.100.7:4000 > 10.244.1.11:8080"},
		{"node-2 encap", about("198.51.100.7", "10.244.1.11", datagram("10.244.1.11:8080", "198.51.100.7:4000")),
			"b", "icmp %s 198.51.100.7 > 10.244.1.11 about 10.244.1.11:8080 > 198.51.100.7:4000"},
	} {
		for _, e := range c.errors {
			w.exchange(exchange{c.from, e, c.at, fmt.Sprintf(c.wants, fmt.Sprintf("%d/%d", e.ICMPType, e.ICMPCode))})
		}
	}
}

// TestForgedErrorToStack: only the pod to which the stack sent a packet for a client outside can refuse it, and no
// other pod.
func TestForgedErrorToStack(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
	defer cancel()
	conn, err := w.path.Stack().Dial(ctx, "udp", ap("198.51.100.9:5000"), ap("10.244.1.10:7000"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	w.expect("a", "udp 198.51.100.9:5000 > 10.244.1.10:7000")
	quoted := datagram("198.51.100.9:5000", "10.244.1.10:7000")
	forged := about("10.244.1.11", "198.51.100.9", quoted)
	for _, e := range forged {
		w.from("b", e)
	}
	w.counted(StrayError, uint64(len(forged)))
	w.from("a", datagram("10.244.1.10:7000", "198.51.100.9:5000"))
	_ = conn.SetReadDeadline(time.Now().Add(await.Patience))
	if _, err := conn.Read(make([]byte, 100)); err != nil {
		t.Fatalf("the answer was not received after forged errors: %v", err)
	}
	w.from("a", icmp("10.244.1.10", "198.51.100.9", 3, 3, quoted.IP()))
	w.from("a", datagram("10.244.1.10:7000", "198.51.100.9:5000")) // an error alone does not wake a reader
	if _, err := conn.Read(make([]byte, 100)); err == nil || os.IsTimeout(err) {
		t.Fatalf("the pod's own error did not reach the client: %v", err)
	}
}

// TestErrorsAboutDenied: an ICMP error about a flow that is no longer permitted does not pass, whichever end it comes
// from. One about a flow that is permitted passes, also before the flow's next packet, and is judged as the flow is.
func TestErrorsAboutDenied(t *testing.T) {
	w := newWorld(t)
	for _, e := range known {
		w.exchange(e)
	}
	byBackend := about("10.244.1.11", "10.244.1.10", datagram("10.244.1.10:1000", "10.244.1.11:8080"))[0]
	byClient := about("10.244.1.10", "10.96.0.1", datagram("10.96.0.1:80", "10.244.1.10:1000"))[0]
	policy := &rules{Ruling: Ruling{Refuse, 7}, to: "10.244.1.11"}
	w.policy = policy
	w.set()
	w.from("b", byBackend)
	w.from("a", byClient)
	w.counted(Denied, 2)
	w.silent()
	for _, f := range policy.calls() {
		want := "10.244.1.10:1000 > 10.96.0.1:80, 10.244.1.10:1000 > 10.244.1.11:8080, a to b"
		got := fmt.Sprintf("%s:%d > %s:%d, %s:%d > %s:%d, %s to %s", f.Orig.Src, f.Orig.SrcPort, f.Orig.Dst, f.Orig.DstPort,
			f.To.Src, f.To.SrcPort, f.To.Dst, f.To.DstPort, f.From.Attachment, f.Toward.Attachment)
		if got != want {
			t.Errorf("judged was %s, want %s", got, want)
		}
	}
	w.policy = &rules{}
	w.set()
	w.exchange(exchange{"b", byBackend, "a", fmt.Sprintf("icmp %d/%d 10.96.0.1 > 10.244.1.10 about 10.244.1.10:1000 > 10.96.0.1:80", byBackend.ICMPType, byBackend.ICMPCode)})
	w.exchange(exchange{"a", byClient, "b", fmt.Sprintf("icmp %d/%d 10.244.1.10 > 10.244.1.11 about 10.244.1.11:8080 > 10.244.1.10:1000", byClient.ICMPType, byClient.ICMPCode)})
}
