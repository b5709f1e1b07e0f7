package node_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/test/await"
)

// captured is a node whose key an attacker has.
type captured struct {
	t    *testing.T
	send func(s netstacktest.Spec, wrapped bool)
	mu   sync.Mutex
	came map[way]int // how many packets came each way
}

// way is where a packet came from, and went.
type way struct{ from, to netip.AddrPort }

// capture captures the second node of a cluster. Its packets go to the first node.
func capture(t *testing.T, c *nodetest.Cluster) *captured {
	k := &captured{t: t, came: map[way]int{}}
	mesh := c.Members[1].Capture(func(_ uint64, packets [][]byte) {
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, ip := range packets {
			var p packet.Packet
			if inner, _, ok := packet.Decap(ip); ok {
				ip = inner
			}
			if p.ParseIP(ip) == packet.Good {
				k.came[way{netip.AddrPortFrom(p.Tuple.Src.Netip(), p.Tuple.SrcPort), netip.AddrPortFrom(p.Tuple.Dst.Netip(), p.Tuple.DstPort)}]++
			}
		}
	})
	encap := packet.Encap{
		Src: packet.AddrFrom(addressing.Stack(netip.MustParsePrefix("10.244.2.0/24"))), Dst: packet.AddrFrom(addressing.Stack(netip.MustParsePrefix("10.244.1.0/24"))),
	}
	k.send = func(s netstacktest.Spec, wrapped bool) {
		var p packet.Packet
		if p.ParseIP(s.IP()) != packet.Good {
			t.Errorf("%v is no packet", s)
		}
		var via *packet.Encap
		if wrapped {
			via = &encap
		}
		mesh.Send(&p, c.Members[0].ID(), via)
	}
	return k
}

// heard calls again repeatedly until a packet comes from one address to the other.
func (k *captured) heard(from, to string, again func()) {
	k.t.Helper()
	w := way{netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)}
	sent := time.Time{}
	await.Until(k.t, "an answer of "+from, func() bool {
		if time.Since(sent) > 200*time.Millisecond {
			again()
			sent = time.Now()
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.came[w] > 0
	})
}

// An attacker with a node's valid key sends packets from every kind of source to every kind of destination, and all
// kinds of floods, through a real tunnel. Only packets from its own pods, and packets of clients of Services, arrive.
// Other nodes and pods notice nothing.
func TestCapturedNode(t *testing.T) {
	c := nodetest.New(t, 3)
	pod, far, bystander := c.Members[0].Pod(3), c.Members[2].Pod(3), c.Members[0].Pod(4)
	for _, p := range []*nodetest.Pod{pod, far} {
		serve(t, p, 8080)
	}
	c.Serve(web(30080, pod))
	private, err := pod.ListenPacket(netip.AddrPortFrom(pod.Addrs[0], 40000)) // like a client that waits for an answer
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = private.Close() })
	var mu sync.Mutex
	var strangers []string
	go func() {
		for buf := make([]byte, 100); ; {
			_, from, err := private.ReadFrom(buf)
			if err != nil {
				return
			}
			mu.Lock()
			strangers = append(strangers, from.String())
			mu.Unlock()
		}
	}()
	at := netip.MustParseAddrPort
	udp := func(from, to string) netstacktest.Spec {
		return netstacktest.Spec{Src: at(from), Dst: at(to), Proto: packet.UDP, Payload: []byte("hello")}
	}
	// These connections go on during the attack.
	local, remote := dial(t, bystander, "tcp", netip.AddrPortFrom(pod.Addrs[0], 8080)), dial(t, bystander, "tcp", netip.AddrPortFrom(far.Addrs[0], 8080))
	k := capture(t, c)
	k.heard("10.244.1.3:8080", "10.244.2.9:5000", func() { k.send(udp("10.244.2.9:5000", "10.244.1.3:8080"), false) })

	for round := range 20 {
		for i, who := range []string{"10.244.1.4", "10.244.3.3", "10.96.0.80", "192.0.2.1", "192.0.2.3", "198.51.100.53", "127.0.0.1", "169.254.1.1", "224.0.0.1"} {
			from := netip.AddrPortFrom(netip.MustParseAddr(who), uint16(1000+round)).String()
			for _, wrapped := range []bool{false, true} {
				k.send(udp(from, "10.244.1.3:40000"), wrapped)
				k.send(netstacktest.Spec{Src: at(from), Dst: at("10.244.1.4:40000"), Proto: packet.TCP, TCPFlags: packet.SYN}, wrapped)
				first := udp(from, "10.244.1.3:40000")
				first.FragFirst, first.ID, first.Payload = true, uint16(round*16+i), make([]byte, 64)
				k.send(first, wrapped)
			}
		}
		for i := range 250 { // flows, fragments for the node, questions for its DNS, packets to refuse
			own := fmt.Sprintf("10.244.2.%d:%d", 2+i, 1000+round)
			first := udp(own, "10.96.0.10:53")
			first.FragFirst, first.ID, first.Payload = true, uint16(i), make([]byte, 64)
			k.send(first, false)
			k.send(udp(own, "10.244.1.3:8080"), false)
			k.send(udp(own, "10.96.0.10:53"), false)
			k.send(udp(own, "10.244.1.77:9"), false)
			k.send(udp(fmt.Sprintf("198.51.%d.%d:4000", round, i), "10.244.1.3:8080"), true)
		}
		if round%5 == 0 {
			local.answers(t, pod.Name, bystander.Addrs[0])
			remote.answers(t, far.Name, bystander.Addrs[0])
			dial(t, bystander, "udp", at("10.96.0.80:80")).answers(t, pod.Name, bystander.Addrs[0])
			dial(t, bystander, "tcp", netip.AddrPortFrom(far.Addrs[0], 8080)).answers(t, far.Name, bystander.Addrs[0])
		}
	}
	// The attacker still gets through as its own pod and as a client. Packets stay in order, so everything sent before
	// was examined.
	k.heard("10.244.1.3:8080", "10.244.2.9:5001", func() { k.send(udp("10.244.2.9:5001", "10.244.1.3:8080"), false) })
	mu.Lock()
	defer mu.Unlock()
	if len(strangers) > 0 {
		t.Errorf("a port that serves nobody was sent to by %v", strangers)
	}
	drops := c.Members[0].Counters().Of("tapestry_drops_total")
	if drops["bad-encap"] == 0 || drops["no-route"] == 0 {
		t.Errorf("what it sent was not refused for what it is: %v", drops)
	}
	t.Logf("drops: %v", drops)
	if got := c.Members[0].Problems(); len(got) != 0 {
		t.Errorf("the node has problems: %v", got)
	}
}
