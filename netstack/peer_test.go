package netstack

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/refusal"
	"tapestry.dev/tapestry/netstack/tap"
)

// These tests say what another node can do whose key is right and whose program is not Tapestry's.

// hasDropped asserts that n packets were dropped or answered for a reason. It need not wait, since FromLink is
// synchronous.
func (w *world) hasDropped(reason DropReason, n uint64) {
	w.t.Helper()
	if s := w.path.Stats(); s.Drops[reason.String()] != n {
		w.t.Errorf("%d packets ended as %s, want %d; %v", s.Drops[reason.String()], reason, n, s)
	}
}

// TestPeerSources: a peer sends from its pods and its own addresses, and encapsulated from addresses that clients of
// its host sockets may have. All other packets are dropped, whatever the Link lets through.
func TestPeerSources(t *testing.T) {
	for _, c := range []struct {
		source, what string
		plain, encap DropReason // NotDropped: it arrives
	}{
		{"10.244.2.20", "its own pod", NotDropped, BadEncap},
		{"fd00:10:244:2::20", "its own pod, IPv6", NotDropped, BadEncap},
		{"10.244.2.1", "its stack", NotDropped, BadEncap},
		{"172.31.0.12", "its node's address", NotDropped, NotDropped},
		{"198.51.100.7", "a client outside", SpoofedPeer, NotDropped},
		{"2001:db8::7", "a client outside, IPv6", SpoofedPeer, NotDropped},
		{"172.31.0.11", "this node's address", SpoofedPeer, NotDropped}, // it is a client of the peer's sockets, too
		{"192.168.7.1", "an address that only the host knows", SpoofedPeer, NotDropped},
		{"10.244.1.10", "a pod here", SpoofedPeer, BadEncap},
		{"fd00:10:244:1::10", "a pod here, IPv6", SpoofedPeer, BadEncap},
		{"10.244.1.1", "this node's stack", SpoofedPeer, BadEncap},
		{"10.244.1.2", "this node's host TAP", SpoofedPeer, BadEncap},
		{"10.244.9.7", "a pod of a third node", SpoofedPeer, BadEncap},
		{"10.244.77.7", "a pod of no node", SpoofedPeer, BadEncap},
		{"10.96.0.1", "a Service", SpoofedPeer, BadEncap},
		{"10.96.0.10", "cluster DNS", SpoofedPeer, BadEncap},
		{"fd00:10:96::1", "a Service, IPv6", SpoofedPeer, BadEncap},
		{"127.0.0.1", "localhost", SpoofedPeer, BadEncap},
		{"::1", "localhost, IPv6", SpoofedPeer, BadEncap},
		{"0.0.0.0", "no address", SpoofedPeer, BadEncap},
		{"::", "no address, IPv6", SpoofedPeer, BadEncap},
		{"224.0.0.1", "a group", SpoofedPeer, BadEncap},
		{"ff02::1", "a group, IPv6", SpoofedPeer, BadEncap},
		{"255.255.255.255", "everybody", SpoofedPeer, BadEncap},
		{"169.254.169.254", "a neighbour on a link", SpoofedPeer, BadEncap},
		{"fe80::1", "a neighbour on a link, IPv6", SpoofedPeer, BadEncap},
	} {
		t.Run(c.what, func(t *testing.T) {
			source, to := netip.MustParseAddr(c.source), netip.MustParseAddr("10.244.1.11")
			if source.Is6() {
				to = netip.MustParseAddr("fd00:10:244:1::11")
			}
			from, at := netip.AddrPortFrom(source, 4000).String(), netip.AddrPortFrom(to, 8080).String()
			for way, why := range map[string]DropReason{"node-2": c.plain, "node-2 encap": c.encap} {
				w := newWorld(t)
				w.config.HostAddrs = addresstest.Addrs("172.31.0.11", "192.168.7.1")
				// The second is a lie: this host has it.
				w.config.Peers[0].NodeAddrs = addresstest.Addrs("172.31.0.12", "192.168.7.1")
				w.set()
				w.from(way, datagram(from, at))
				if why == NotDropped {
					w.expect("b", "udp "+from+" > "+at)
				} else {
					w.hasDropped(why, 1)
				}
				w.silent()
			}
		})
	}
}

// changes is an Observer that changes the Path's Config at the first flow.
type changes struct {
	*world
	once sync.Once
}

func (c *changes) Begun(*Flow, uint32, uint64) {
	c.once.Do(func() { c.config.MTU--; c.set() })
}
func (*changes) Answered(uint32)                           {}
func (*changes) Refused(*Flow, Refusal)                    {}
func (*changes) Dropped(*packet.Tuple, DropReason, uint64) {}
func (*changes) Ended(flow.Entry, flow.Info)               {}

// TestChangeWithinBatch: the Path's Config changes while a peer's batch is on its way, and no packet of the batch is
// lost.
func TestChangeWithinBatch(t *testing.T) {
	o := &changes{}
	w := newWorldWith(t, o)
	o.world = w
	w.path.FromLink(node2, [][]byte{
		datagram("10.244.2.20:4000", "10.244.1.11:8080").IP(),
		datagram("10.244.2.20:4001", "10.244.1.11:8080").IP(),
		encapsulate(datagram("198.51.100.7:4000", "10.244.1.11:8080"), "10.244.2.1", "10.244.1.1"),
	})
	w.expect("b", "udp 10.244.2.20:4000 > 10.244.1.11:8080")
	w.expect("b", "udp 10.244.2.20:4001 > 10.244.1.11:8080")
	w.expect("b", "udp 198.51.100.7:4000 > 10.244.1.11:8080")
	w.silent()
}

// TestPeerReach: which destinations a peer reaches from its own addresses, and as a client of its host sockets.
func TestPeerReach(t *testing.T) {
	for _, c := range []struct {
		to, what     string
		plain, encap string     // the packet that arrives, "" for none
		why, whyNot  DropReason // for plain and encap
	}{
		{"10.244.1.11:8080", "an endpoint", "b", "b", 0, 0},
		{"10.244.1.11:40000", "another port of the pod", "b", "", 0, BadEncap},
		{"10.244.1.10:40000", "a pod that serves nobody", "a", "", 0, BadEncap},
		{"10.244.1.98:8080", "nobody's address", "link", "", NoRoute, BadEncap},
		{"10.244.1.1:53", "the stack", "stack", "", 0, BadEncap},
		{"172.31.0.11:10250", "the node", "host", "", 0, BadEncap},
		{"10.244.1.2:10250", "the host TAP", "host", "", 0, BadEncap},
		{"127.0.0.1:10249", "localhost", "", "", NoRoute, BadEncap},
		{"169.254.169.254:80", "a link-local address", "link", "", NoRoute, BadEncap},
		{"224.0.0.1:80", "a group", "", "", Multicast, BadEncap},
		{"255.255.255.255:67", "everybody", "", "", Multicast, BadEncap},
		{"0.0.0.0:80", "no address", "", "", NoRoute, BadEncap},
		{"10.96.0.1:80", "a Service", "link", "", NoRoute, BadEncap},
		{"10.244.9.7:80", "a third node's pod", "", "", NoRoute, BadEncap},
		{"172.31.0.12:80", "itself", "", "", NoRoute, BadEncap},
		{"203.0.113.1:80", "the outside", "", "", NoRoute, BadEncap},
	} {
		t.Run(c.what, func(t *testing.T) {
			for way, at := range map[string]string{"node-2": c.plain, "node-2 encap": c.encap} {
				w := newWorld(t)
				source, why := "10.244.2.20:4000", c.why
				if way == "node-2 encap" {
					source, why = "198.51.100.7:4000", c.whyNot
				}
				w.from(way, datagram(source, c.to))
				switch at {
				case "link": // the packet is refused
					w.expect("link", "node-2 icmp 3/1 10.244.1.1 > 10.244.2.20 about 10.244.2.20:4000 > "+c.to)
				case "stack":
					w.until(func() bool { return w.path.Stats().Verdicts[ToStack.String()] == 1 })
					continue // it answers
				case "":
					w.hasDropped(why, 1)
				default:
					w.expect(at, "udp "+source+" > "+c.to)
				}
				w.silent()
			}
		})
	}
}

// TestPeerTakesNoConversation: a peer sends to all ports of a pod as if it had clients with a resolver's address. It
// gets nothing of what the pod sends to that resolver afterwards.
func TestPeerTakesNoConversation(t *testing.T) {
	w := newWorld(t)
	// Of the resolver: its packets go no further.
	w.config.DenyEgress = []Destination{{Range: netip.MustParsePrefix("198.51.100.0/24")}}
	w.set()
	const ports = 200
	for port := 40000; port < 40000+ports; port++ {
		w.from("node-2 encap", datagram("198.51.100.53:53", fmt.Sprint("10.244.1.10:", port)))
		w.from("node-2 encap", segment("198.51.100.53:443", fmt.Sprint("10.244.1.10:", port), packet.SYN))
	}
	w.hasDropped(BadEncap, 2*ports)
	w.silent()
	for port := 40000; port < 40000+ports; port++ {
		w.from("a", datagram(fmt.Sprint("10.244.1.10:", port), "198.51.100.53:53"))
		w.from("a", segment(fmt.Sprint("10.244.1.10:", port), "198.51.100.53:443", packet.SYN))
	}
	w.counted(EgressDenied, 2*ports)
	if n := len(w.link.Sent()); n > 0 {
		t.Errorf("%d packets went to the peer, such as %s", n, w.describeSent(<-w.link.Sent()))
	}
}

// TestPeerIsOneOwner: a peer gets as much of shared resources as one pod, from however many addresses it sends, even if
// they are not its own.
func TestPeerIsOneOwner(t *testing.T) {
	t.Run("answers to what is refused", func(t *testing.T) {
		for _, way := range []string{"node-2", "node-2 encap"} {
			w := newWorld(t)
			w.balancer.picks[ap("10.96.0.11:80")] = picked(6, "10.244.1.99:8080")
			// With another seed, pod and peer may have one bucket by chance.
			w.path.refusals = refusal.NewLimit(time.Now, 1)
			const tries = 5000
			for i := range tries {
				source := netip.AddrFrom4([4]byte{10, 244, 2, byte(i)})
				if way == "node-2 encap" {
					source = netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
				}
				w.from(way, datagram(netip.AddrPortFrom(source, 4000).String(), "10.244.1.99:8080"))
				for len(w.link.Sent()) > 0 {
					<-w.link.Sent()
				}
			}
			w.hasDropped(NoRoute, tries)
			// The limit is 50 at once and 100 a second; pods have limits of their own.
			if answered := w.path.Stats().Verdicts[Answered.String()]; answered > 1000 {
				t.Errorf("%s: %d of %d packets were answered", way, answered, tries)
			}
			for _, pod := range []string{"10.244.1.10", "10.244.1.11", "10.244.1.10"} {
				name := map[string]string{"10.244.1.10": "a", "10.244.1.11": "b"}[pod]
				w.from(name, datagram(pod+":1000", "10.96.0.3:80"))
				w.expect(name, fmt.Sprintf("icmp 3/3 10.96.0.3 > %s about %s:1000 > 10.96.0.3:80", pod, pod))
			}
		}
	})
	t.Run("fragments for the node itself", func(t *testing.T) {
		w := newWorld(t)
		first := func(source string, id int) netstacktest.Spec {
			s := datagram(source, "10.96.0.10:53")
			s.FragFirst, s.ID, s.Payload = true, uint16(id), make([]byte, 64)
			return s
		}
		for i := range 1000 {
			w.from("node-2", first(fmt.Sprintf("10.244.2.%d:4000", 1+i%250), i))
		}
		w.until(func() bool { return w.path.Stats().Verdicts[ToStack.String()] == 1000 })
		w.from("a", first("10.244.1.10:4000", 7))
		w.until(func() bool { return w.path.Stats().Verdicts[ToStack.String()] == 1001 })
		if s := w.path.Stack().Stats().Pieces; s.Owners != 2 || s.Refused != 0 {
			t.Errorf("the peer is not one owner: %+v", s)
		}
	})
	t.Run("host sockets", func(t *testing.T) {
		w := newWorld(t)
		w.path.Detach("host")
		w.config.NodeAddrs = addresstest.Addrs("127.0.0.1")
		w.set()
		for i := range 40 {
			w.from("node-2", datagram(fmt.Sprintf("10.244.2.%d:4000", 3+i), "127.0.0.1:9"))
			w.from("node-2", echo(fmt.Sprintf("10.244.2.%d:7", 3+i), "127.0.0.1:0", 8))
			w.from("node-2", segment(fmt.Sprintf("10.244.2.%d:4000", 3+i), "127.0.0.1:9", packet.SYN))
		}
		s := w.path.Stack().Stats()
		if s.UDP.Sockets.Owners > 1 || s.UDP.Conversations.Owners > 1 || s.Pings.Owners > 1 || s.TCP.Owners > 1 {
			t.Errorf("the peer is not one owner: %+v", s)
		}
		if s.UDP.Sockets.Most != 40 || s.UDP.Conversations.Most != 40 { // not every host lets the test send pings
			t.Errorf("not all of it was used: %+v", s)
		}
	})
}

// TestPeerFloodsFlows: a peer begins 20,000 flows that are answered, from all its addresses and as clients of its host
// sockets, in a table for 4,096. Flows that others begin get through, and flows that others have go on.
func TestPeerFloodsFlows(t *testing.T) {
	const capacity, count = 1 << 12, 20_000
	w, toB := hotNodeOf(t, capacity)
	w.path.snapshot.Load().balancer = &hotBalancer{}
	toA := w.path.attachments.table.Load().byAddr[packet.AddrFrom(netip.MustParseAddr("10.244.1.10"))].dev.(*sink)
	buf := make([]byte, packet.MaxFrame)
	send := func(port string, s netstacktest.Spec) {
		w.from = w.path.attachments.table.Load().byName[port]
		buf = w.fromTAP(buf[:copy(buf[:cap(buf)], s.Frame(w.from.MAC, tap.RouterMAC))])
	}
	const a, b = "10.244.1.10", "10.244.1.11"
	for i := range 100 {
		send(a, segment(fmt.Sprint(a, ":", 20000+i), b+":8080", packet.SYN))
	}
	held := toB.frames
	for n := range count {
		peer := fmt.Sprintf("10.244.2.%d:%d", 2+n%250, 1024+n/250)
		if n%2 == 0 {
			w.fromLink(node2, [][]byte{datagram(peer, b+":8080").IP()})
			send(b, datagram(b+":8080", peer))
			continue
		}
		peer = fmt.Sprintf("198.51.%d.%d:4000", n>>8&255, n&255)
		w.fromLink(node2, [][]byte{encapsulate(datagram(peer, b+":8080"), "10.244.2.1", "10.244.1.1")})
		send(b, datagram(b+":8080", peer))
	}
	s := w.path.flows.Stats()
	if got := toB.frames - held; got != count || s.Len < capacity*9/10 {
		t.Fatalf("the peer did not fill the table: %d of %d arrived, %+v", got, count, s)
	}
	through := 0
	for i := range 100 {
		before := toA.frames
		if send(b, segment(b+":8080", fmt.Sprint(a, ":", 20000+i), packet.SYN|packet.ACK)); toA.frames == before+1 {
			through++
		}
		before = toB.frames
		if send(a, segment(fmt.Sprint(a, ":", 30000+i), b+":8080", packet.SYN)); toB.frames == before+1 {
			through++
		}
	}
	s = w.path.flows.Stats()
	if through != 200 || s.Full != 0 || s.Owners != 2 {
		t.Errorf("%d of 200 packets of pods got through: %+v", through, s)
	}
}

// TestPeerOddPackets: packets at the limits of what is allowed pass or are dropped, and nobody else is sent anything.
func TestPeerOddPackets(t *testing.T) {
	change := func(s netstacktest.Spec, f func(ip []byte) []byte) []byte {
		ip := f(s.IP())
		if len(ip) >= 20 && ip[0] == 0x45 {
			ip[10], ip[11] = 0, 0
			sum := packet.Checksum(ip[:20], 0)
			ip[10], ip[11] = byte(^sum>>8), byte(^sum)
		}
		return ip
	}
	ordinary := datagram("10.244.2.20:4000", "10.244.1.11:8080")
	large := ordinary
	large.Payload = make([]byte, 60000)
	nested := encapsulateIP(encapsulate(ordinary, "198.51.100.7", "10.244.1.11"), "10.244.2.1", "10.244.1.1")
	for _, c := range []struct {
		what string
		ip   []byte
		why  DropReason // NotDropped: the packet arrives at pod b unchanged
	}{
		{"TTL 0", change(ordinary, func(ip []byte) []byte { ip[8] = 0; return ip }), NotDropped},
		{"TTL 1", change(ordinary, func(ip []byte) []byte { ip[8] = 1; return ip }), NotDropped},
		{"larger than any path", large.IP(), NotDropped},
		{"empty", nil, Malformed},
		{"one byte", []byte{0x45}, Malformed},
		{"no version", change(ordinary, func(ip []byte) []byte { ip[0] = 0; return ip }), Malformed},
		{"a header of 16 bytes", change(ordinary, func(ip []byte) []byte { ip[0] = 0x44; return ip }), Malformed},
		{"a header longer than the packet", change(ordinary, func(ip []byte) []byte { ip[0] = 0x4f; return ip }), Malformed},
		{"longer than it is", change(ordinary, func(ip []byte) []byte { ip[2] = 0xff; return ip }), Malformed},
		{"UDP longer than its packet", change(ordinary, func(ip []byte) []byte { ip[24] = 0xff; return ip }), Malformed},
		{"UDP cut off", change(ordinary, func(ip []byte) []byte { ip[3] = 24; return ip[:24] }), Malformed},
		{"IP in IP from a third node", encapsulate(ordinary, "10.244.9.1", "10.244.1.1"), SpoofedPeer},
		{"IP in IP in IP", nested, BadEncap},
		{"IP in IP with a mark that cannot be carried", change(ordinary, func(ip []byte) []byte {
			ip = encapsulateIP(ip, "10.244.2.1", "10.244.1.1")
			ip[1] = 3
			return ip
		}), BadEncap},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld(t)
			w.path.FromLink(node2, [][]byte{c.ip})
			if c.why == NotDropped {
				w.expect("b", "udp 10.244.2.20:4000 > 10.244.1.11:8080")
			} else {
				w.hasDropped(c.why, 1)
			}
			w.silent()
		})
	}
}

// TestPodsTunnels: pods tunnel IP in IP as they like, between nodes as on one, and nothing of it is changed on the way,
// a congestion mark of the outer header included.
func TestPodsTunnels(t *testing.T) {
	for _, outer := range []struct{ src, dst, at string }{
		{"10.244.2.20", "10.244.1.11", "b"},   // between pods
		{"172.31.0.12", "10.244.1.11", "b"},   // from a process of the other node
		{"10.244.2.20", "10.244.1.2", "host"}, // to one of this node
		{"10.244.2.1", "10.244.1.11", "b"},    // from the other node's stack, though to a pod
		{"fd00:10:244:2::20", "fd00:10:244:1::11", "b"},
	} {
		for _, inner := range []netstacktest.Spec{
			datagram("192.0.2.1:7", "192.0.2.2:8"), datagram("10.244.1.10:7", "10.244.1.11:8080"), datagram("[2001:db8::1]:7", "[2001:db8::2]:8"),
		} {
			for _, marked := range []bool{false, true} {
				ip := podsTunnel(inner.IP(), outer.src, outer.dst, marked)
				w := newWorld(t)
				w.path.FromLink(node2, [][]byte{bytes.Clone(ip)})
				select {
				case f := <-w.devices[outer.at].Frames():
					if !bytes.Equal(f[packet.HeadLen:], ip) {
						t.Errorf("%s > %s: the packet is not as it was sent:\n% x, want\n% x", outer.src, outer.dst, f[packet.HeadLen:], ip)
					}
				default:
					t.Errorf("%s > %s, marked %v: nothing arrived; %v", outer.src, outer.dst, marked, w.path.Stats())
				}
				w.silent()
			}
		}
	}
}

// podsTunnel encapsulates an IP packet as a pod does. marked sets the congestion mark of a router.
func podsTunnel(inner []byte, src, dst string, marked bool) []byte {
	proto := packet.IPIP
	if inner[0]>>4 == 6 {
		proto = packet.IPv6IP
	}
	outer := netstacktest.Spec{Src: netip.AddrPortFrom(netip.MustParseAddr(src), 0), Dst: netip.AddrPortFrom(netip.MustParseAddr(dst), 0), Proto: proto, FragAt: 8, Payload: inner}
	ip := outer.IP()
	switch {
	case outer.Src.Addr().Is4():
		ip = encapsulateIP(inner, src, dst)
		if marked {
			ip[1], ip[10], ip[11] = 3, 0, 0
			sum := packet.Checksum(ip[:20], 0)
			ip[10], ip[11] = byte(^sum>>8), byte(^sum)
		}
	case marked:
		ip[1] |= 3 << 4
	}
	return ip
}

// mayArrive is the slow twin of the rules for packets of a peer: it reports whether a packet, given with its
// encapsulation, may arrive at a pod or the host of this world.
func mayArrive(src, dst netip.Addr, encapsulated, atHost bool) bool {
	in := func(a netip.Addr, ranges ...string) bool {
		for _, p := range addresstest.Prefixes(ranges...) {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	if !encapsulated {
		return in(src, "10.244.2.0/24", "fd00:10:244:2::/64", "172.31.0.12/32")
	}
	return !atHost && !in(src, "10.244.0.0/16", "fd00:10:244::/48", "10.96.0.0/16", "fd00:10:96::/112") &&
		!src.IsLoopback() && !src.IsLinkLocalUnicast() && !src.IsUnspecified() && !src.IsMulticast() && src != netip.MustParseAddr("255.255.255.255")
}

// TestPeerSaysAnything sends packets from all kinds of addresses, of all kinds and encapsulations, whole, in fragments
// and damaged. Only those that may arrive do, and each is counted once.
func TestPeerSaysAnything(t *testing.T) {
	w := newWorld(t)
	addrs := addresstest.Addrs("10.244.2.20", "10.244.2.1", "172.31.0.12", "10.244.1.10", "10.244.1.11", "10.244.1.1", "10.244.1.2", "172.31.0.11",
		"10.244.9.7", "10.96.0.1", "10.96.0.10", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.169.254", "198.51.100.7",
		"fd00:10:244:2::20", "fd00:10:244:1::11", "fd00:10:96::1", "::1", "ff02::1", "fe80::1", "2001:db8::7")
	protos := []packet.Proto{packet.TCP, packet.UDP, packet.ICMPv4, packet.ICMPv6, packet.IPIP, packet.IPv6IP, 47, 132}
	rnd := rand.New(rand.NewPCG(4, 4))
	pick := func() netip.Addr { return addrs[rnd.IntN(len(addrs))] }
	var total uint64
	for range 30_000 {
		src := pick()
		dst := pick()
		for src.Is4() != dst.Is4() {
			dst = pick()
		}
		s := netstacktest.Spec{
			Src: netip.AddrPortFrom(src, uint16(rnd.IntN(5))), Dst: netip.AddrPortFrom(dst, uint16(8078+rnd.IntN(4))), Proto: protos[rnd.IntN(len(protos))],
			TCPFlags: uint8(rnd.IntN(64)), ICMPType: uint8(rnd.IntN(256)), ID: uint16(rnd.IntN(4)), MayFrag: rnd.IntN(2) == 0,
			FragFirst: rnd.IntN(8) == 0, FragAt: 8 * rnd.IntN(2) * rnd.IntN(3), Payload: make([]byte, rnd.IntN(100)),
		}
		ip, encapsulated := s.IP(), rnd.IntN(2) == 0
		if encapsulated {
			gates := [...][2]string{{"10.244.2.1", "10.244.1.1"}, {"10.244.2.1", "10.244.1.1"}, {"10.244.9.1", "10.244.1.1"}, {"10.244.2.1", "10.244.1.10"}}[rnd.IntN(4)]
			ip = encapsulate(s, gates[0], gates[1])
		}
		if rnd.IntN(4) == 0 && len(ip) > 0 {
			ip[rnd.IntN(len(ip))] = byte(rnd.IntN(256))
		}
		_, outer, ok := packet.Inner(ip)
		encapsulated = ok && outer.Src.Netip() == netip.MustParseAddr("10.244.2.1") && outer.Dst.Netip() == netip.MustParseAddr("10.244.1.1")
		w.path.FromLink(node2, [][]byte{ip})
		total++
		for name, d := range w.devices {
			for len(d.Frames()) > 0 {
				var p packet.Packet
				if p.ParseFrame(<-d.Frames()) != packet.Good {
					t.Fatalf("%s got what is no packet", name)
				}
				src, dst := p.Tuple.Src.Netip(), p.Tuple.Dst.Netip()
				if !mayArrive(src, dst, encapsulated, name == "host") {
					t.Fatalf("%s got %v of protocol %d; encapsulated: %v", name, p.Tuple, p.Tuple.Proto, encapsulated)
				}
			}
		}
		for len(w.link.Sent()) > 0 {
			if s := <-w.link.Sent(); s.Peer != node2 {
				t.Fatalf("because of a packet of the peer another peer was sent %s", w.describeSent(s))
			}
		}
	}
	var counted uint64
	s := w.path.Stats()
	for _, n := range s.Verdicts {
		counted += n
	}
	if counted < total || s.Verdicts[ToTAP.String()] == 0 {
		t.Errorf("%d packets have %d verdicts: %v", total, counted, s)
	}
}
