package netstack

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

// step is one line of a packet-flow table: a packet enters at from, and either want arrives at where, or reason is
// counted.
type step struct {
	from   string
	packet netstacktest.Spec
	where  string
	want   string
	reason DropReason
}

// take takes the steps, after which nothing else may have been sent.
func (w *world) take(steps []step) {
	w.t.Helper()
	for _, s := range steps {
		w.from(s.from, s.packet)
		if s.want != "" {
			w.expect(s.where, s.want)
		}
		if s.reason != NotDropped {
			w.dropped(s.reason)
		}
	}
	w.silent()
}

func TestPacketFlows(t *testing.T) {
	const S, A, SA = packet.SYN, packet.ACK, packet.SYN | packet.ACK
	for name, steps := range map[string][]step{
		"pod to pod": {
			{"a", segment("10.244.1.10:1000", "10.244.1.11:80", S), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:80 S", 0},
			{"b", segment("10.244.1.11:80", "10.244.1.10:1000", SA), "a", "tcp 10.244.1.11:80 > 10.244.1.10:1000 SA", 0},
		},
		"pod to pod, IPv6": {
			{"a", datagram("[fd00:10:244:1::10]:1000", "[fd00:10:244:1::11]:80"), "b", "udp [fd00:10:244:1::10]:1000 > [fd00:10:244:1::11]:80", 0},
		},
		"pod to a pod on another node, and back": {
			{"a", segment("10.244.1.10:1000", "10.244.2.10:80", S), "link", "node-2 tcp 10.244.1.10:1000 > 10.244.2.10:80 S", 0},
			{"node-2", segment("10.244.2.10:80", "10.244.1.10:1000", SA), "a", "tcp 10.244.2.10:80 > 10.244.1.10:1000 SA", 0},
		},
		"ClusterIP with a backend here": {
			{"a", segment("10.244.1.10:1000", "10.96.0.1:80", S), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S", 0},
			{"b", segment("10.244.1.11:8080", "10.244.1.10:1000", SA), "a", "tcp 10.96.0.1:80 > 10.244.1.10:1000 SA", 0},
		},
		"ClusterIP, IPv6": {
			{"a", segment("[fd00:10:244:1::10]:1000", "[fd00:10:96::1]:80", S), "b", "tcp [fd00:10:244:1::10]:1000 > [fd00:10:244:1::11]:8080 S", 0},
			{"b", segment("[fd00:10:244:1::11]:8080", "[fd00:10:244:1::10]:1000", SA), "a", "tcp [fd00:10:96::1]:80 > [fd00:10:244:1::10]:1000 SA", 0},
		},
		"ClusterIP with a backend on another node": {
			{"a", datagram("10.244.1.10:1000", "10.96.0.5:53"), "link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:5353", 0},
			{"node-2", datagram("10.244.2.10:5353", "10.244.1.10:1000"), "a", "udp 10.96.0.5:53 > 10.244.1.10:1000", 0},
		},
		"a pod reaches itself through its Service": {
			{"a", segment("10.244.1.10:1000", "10.96.0.4:80", S), "a", "tcp 10.244.1.1:1000 > 10.244.1.10:8080 S", 0},
			{"a", segment("10.244.1.10:8080", "10.244.1.1:1000", SA), "a", "tcp 10.96.0.4:80 > 10.244.1.10:1000 SA", 0},
		},
		"no endpoints: TCP is reset": {
			{"a", segment("10.244.1.10:1000", "10.96.0.3:80", S), "a", "tcp 10.96.0.3:80 > 10.244.1.10:1000 RA", NoEndpoints},
		},
		"no endpoints: UDP is unreachable": {
			{"a", datagram("10.244.1.10:1000", "10.96.0.3:80"), "a", "icmp 3/3 10.96.0.3 > 10.244.1.10 about 10.244.1.10:1000 > 10.96.0.3:80", NoEndpoints},
		},
		"unknown port of a Service": {
			{"a", segment("10.244.1.10:1000", "10.96.0.1:81", S), "a", "tcp 10.96.0.1:81 > 10.244.1.10:1000 RA", UnknownPort},
		},
		"traffic policy Local without a local endpoint": {
			{"a", segment("10.244.1.10:1000", "10.96.0.7:80", S), "", "", LocalPolicy},
		},
		"a client that a load balancer's address is not for": {
			{"a", segment("10.244.1.10:1000", "10.96.0.8:80", S), "", "", SourceRange},
		},
		"a hostPort, from a pod of another node": {
			{"node-2", segment("10.244.2.10:1000", "172.31.0.11:54323", S), "b", "tcp 10.244.2.10:1000 > 10.244.1.11:8080 S", 0},
			{"b", segment("10.244.1.11:8080", "10.244.2.10:1000", SA), "link", "node-2 tcp 172.31.0.11:54323 > 10.244.2.10:1000 SA", 0},
		},
		"a hostPort, from a pod of this node": {
			{"a", segment("10.244.1.10:1000", "172.31.0.11:54323", S), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S", 0},
			{"b", segment("10.244.1.11:8080", "10.244.1.10:1000", SA), "a", "tcp 172.31.0.11:54323 > 10.244.1.10:1000 SA", 0},
		},
		"a pod reaches itself through its hostPort": {
			{"b", segment("10.244.1.11:1000", "172.31.0.11:54323", S), "b", "tcp 10.244.1.1:1000 > 10.244.1.11:8080 S", 0},
		},
		"a node port whose backend is elsewhere is not translated a second time": {
			{"node-2", segment("10.244.2.10:1000", "172.31.0.11:30080", S), "host", "tcp 10.244.2.10:1000 > 172.31.0.11:30080 S", 0},
		},
		"a peer does not have its Services translated": {
			{"node-2", segment("10.244.2.10:1000", "10.96.0.1:80", S), "", "", NoRoute},
		},
		"the host TAP": {
			{"host", segment("10.244.1.2:1000", "10.96.0.1:80", S), "b", "tcp 10.244.1.2:1000 > 10.244.1.11:8080 S", 0},
			{"b", segment("10.244.1.11:8080", "10.244.1.2:1000", SA), "host", "tcp 10.96.0.1:80 > 10.244.1.2:1000 SA", 0},
			{"a", segment("10.244.1.10:1000", "172.31.0.11:22", S), "host", "tcp 10.244.1.10:1000 > 172.31.0.11:22 S", 0},
			{"host", segment("172.31.0.11:22", "10.244.1.10:1000", SA), "a", "tcp 172.31.0.11:22 > 10.244.1.10:1000 SA", 0},
			{"a", segment("10.244.1.10:1000", "172.31.0.12:22", S), "link", "node-2 tcp 10.244.1.10:1000 > 172.31.0.12:22 S", 0},
			{"node-2", segment("10.244.2.10:1000", "172.31.0.11:22", S), "host", "tcp 10.244.2.10:1000 > 172.31.0.11:22 S", 0},
			{"host", segment("172.31.0.11:5000", "10.244.2.10:80", S), "link", "node-2 tcp 172.31.0.11:5000 > 10.244.2.10:80 S", 0},
		},
		"a source that is not the pod's": {
			{"a", segment("10.244.1.11:1000", "10.244.2.10:80", S), "", "", Spoofed},
		},
		"a source that is another node's pod": {
			{"a", segment("10.244.2.10:1000", "10.244.1.11:80", S), "", "", Spoofed},
		},
		"the host may not use a pod's address": {
			{"host", segment("10.244.1.10:1000", "10.244.1.11:80", S), "", "", Spoofed},
		},
		"an ICMP error goes back translated": {
			{"a", datagram("10.244.1.10:1000", "10.96.0.5:53"), "link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:5353", 0},
			{"node-2", netstacktest.Spec{Src: ap("10.244.2.10:0"), Dst: ap("10.244.1.10:0"), Proto: packet.ICMPv4, ICMPType: 3, ICMPCode: 3,
				Payload: datagram("10.244.1.10:1000", "10.244.2.10:5353").IP()}, "a",
				"icmp 3/3 10.96.0.5 > 10.244.1.10 about 10.244.1.10:1000 > 10.96.0.5:53", 0},
		},
		"echo between pods": {
			{"a", echo("10.244.1.10:7", "10.244.1.11:0", 8), "b", "icmp 8 10.244.1.10 > 10.244.1.11 id 7", 0},
			{"b", echo("10.244.1.11:7", "10.244.1.10:0", 0), "a", "icmp 0 10.244.1.11 > 10.244.1.10 id 7", 0},
		},
		"a client of another node's host socket, and the way back": {
			{"node-2 encap", segment("198.51.100.7:4000", "10.244.1.11:8080", S), "b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 S", 0},
			{"b", segment("10.244.1.11:8080", "198.51.100.7:4000", SA), "link", "node-2 encap 10.244.1.1 > 10.244.2.1: tcp 10.244.1.11:8080 > 198.51.100.7:4000 SA", 0},
		},
		"encapsulated, but the client claims a pod's address": {
			{"node-2 encap", segment("10.244.2.10:4000", "10.244.1.11:8080", S), "", "", BadEncap},
		},
		"encapsulated, but the client claims a service address": {
			{"node-2 encap", segment("10.96.0.1:4000", "10.244.1.11:8080", S), "", "", BadEncap},
		},
		"encapsulated, for another node's pod": {
			{"node-2 encap", segment("198.51.100.7:4000", "10.244.2.11:8080", S), "", "", BadEncap},
		},
		"encapsulated, for the outside": {
			{"node-2 encap", segment("198.51.100.7:4000", "203.0.113.1:80", S), "", "", BadEncap},
		},
		"encapsulated, for the host": {
			{"node-2 encap", segment("198.51.100.7:4000", "172.31.0.11:22", S), "", "", BadEncap},
		},
		"an answer nobody waits for": {
			{"node-2 encap", segment("10.244.2.10:8080", "198.51.100.7:4000", SA), "", "", BadEncap},
		},
		"from a peer to the outside": {
			{"node-2", segment("10.244.2.10:1000", "203.0.113.1:80", S), "", "", NoRoute},
		},
		"from a peer to a peer": {
			{"node-2", segment("10.244.2.10:1000", "10.244.9.1:80", S), "", "", NoRoute},
		},
		"a pod address nobody has": {
			{"a", segment("10.244.1.99:80", "10.244.1.10:1", S), "", "", Spoofed},
			{"a", datagram("10.244.1.10:1000", "10.244.1.99:80"), "a", "icmp 3/1 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 10.244.1.99:80", NoRoute},
			{"a", segment("10.244.1.10:1000", "10.244.1.99:80", S), "a", "icmp 3/1 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 10.244.1.99:80", NoRoute},
		},
		"a pod of a node that left": {
			{"a", segment("10.244.1.10:1000", "10.244.7.5:80", A), "a", "icmp 3/1 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 10.244.7.5:80", NoRoute},
		},
		"a pod that had a connection and is gone": {
			{"a", segment("10.244.1.10:1000", "10.244.1.99:80", A), "a", "tcp 10.244.1.99:80 > 10.244.1.10:1000 R", NoRoute},
			{"node-2", segment("10.244.2.10:1000", "10.244.1.99:80", A), "link", "node-2 tcp 10.244.1.99:80 > 10.244.2.10:1000 R", NoRoute},
			{"node-2 encap", segment("198.51.100.7:4000", "10.244.1.99:80", A), "link", "node-2 encap 10.244.1.1 > 10.244.2.1: tcp 10.244.1.99:80 > 198.51.100.7:4000 R", NoRoute},
			{"node-2 encap", segment("10.244.1.10:4000", "10.244.1.99:80", A), "", "", BadEncap},
		},
		"a Service whose backend nobody has: the answer is about the client's own packet": {
			{"a", datagram("10.244.1.10:1000", "10.96.0.9:80"), "a", "icmp 3/1 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 10.96.0.9:80", NoRoute},
			{"a", segment("10.244.1.10:1000", "10.96.0.9:80", A), "a", "tcp 10.96.0.9:80 > 10.244.1.10:1000 R", NoRoute},
		},
		"the node's loopback": {
			{"a", segment("10.244.1.10:1000", "127.0.0.1:22", S), "a", "tcp", NoRoute},
		},
		"fragments follow the first": {
			{"a", netstacktest.Spec{Src: ap("10.244.1.10:1000"), Dst: ap("10.96.0.5:53"), Proto: packet.UDP, FragFirst: true, ID: 77, Payload: make([]byte, 1392)},
				"link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:5353", 0},
			{"a", netstacktest.Spec{Src: ap("10.244.1.10:0"), Dst: ap("10.96.0.5:0"), Proto: packet.UDP, FragAt: 1400, ID: 77, Payload: []byte("rest")},
				"link", "node-2 udp 10.244.1.10:0 > 10.244.2.10:0", 0},
		},
		// The rest of a large ping may be shorter than an ICMP header (cilium/cilium#16036).
		"a last fragment of few bytes": {
			{"a", netstacktest.Spec{Src: ap("10.244.1.10:7"), Dst: ap("10.244.1.11:0"), Proto: packet.ICMPv4, ICMPType: 8, FragFirst: true, ID: 79, Payload: make([]byte, 1392)},
				"b", "icmp 8 10.244.1.10 > 10.244.1.11 id 7", 0},
			{"a", netstacktest.Spec{Src: ap("10.244.1.10:0"), Dst: ap("10.244.1.11:0"), Proto: packet.ICMPv4, FragAt: 1400, ID: 79, Payload: []byte{1}},
				"b", "icmp 0 10.244.1.10 > 10.244.1.11 id 0", 0},
		},
		// IPsec between pods: the authentication header is treated as any other protocol (cilium/cilium#24187).
		"an IPv6 packet with an authentication header": {
			{"a", netstacktest.Spec{Src: ap("[fd00:10:244:1::10]:0"), Dst: ap("[fd00:10:244:1::11]:0"), Proto: 51, FragAt: 8, Payload: make([]byte, 44)},
				"b", "icmp 0 fd00:10:244:1::10 > fd00:10:244:1::11 id 0", 0},
			{"b", netstacktest.Spec{Src: ap("[fd00:10:244:1::11]:0"), Dst: ap("[fd00:10:244:1::10]:0"), Proto: 51, FragAt: 8, Payload: make([]byte, 44)},
				"a", "icmp 0 fd00:10:244:1::11 > fd00:10:244:1::10 id 0", 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, s := range steps {
				if s.want == "tcp" { // the test looks only at the reason
					s.where = ""
				}
				w.from(s.from, s.packet)
				if s.where != "" {
					w.expect(s.where, s.want)
				}
				if s.reason != NotDropped {
					w.dropped(s.reason)
				}
			}
		})
	}
}

// TestFragmentsOfOnePod: endless first fragments of one pod do not cost another pod the rest of its datagram.
func TestFragmentsOfOnePod(t *testing.T) {
	w := newStillWorld(t)
	first := func(pod string, id uint16) netstacktest.Spec {
		return netstacktest.Spec{Src: ap(pod + ":1000"), Dst: ap("10.96.0.5:53"), Proto: packet.UDP, FragFirst: true, ID: id, Payload: make([]byte, 1392)}
	}
	w.exchange(exchange{"a", first("10.244.1.10", 7), "link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:5353"})
	for id := range uint16(10000) {
		w.exchange(exchange{"b", first("10.244.1.11", id), "link", "node-2 udp 10.244.1.11:1000 > 10.244.2.10:5353"})
	}
	later := netstacktest.Spec{Src: ap("10.244.1.10:0"), Dst: ap("10.96.0.5:0"), Proto: packet.UDP, FragAt: 1400, ID: 7, Payload: []byte("rest")}
	w.exchange(exchange{"a", later, "link", "node-2 udp 10.244.1.10:0 > 10.244.2.10:0"})
}

// TestTwoFirstDatagrams: a resolver sends two questions from one port at once, and two processors may handle them. Each
// may be the first packet of the flow, and both arrive, at one backend (kubernetes/kubernetes#56903).
func TestTwoFirstDatagrams(t *testing.T) {
	w := newWorld(t)
	for port := 2000; port < 2500; port++ {
		client := fmt.Sprintf("10.244.2.10:%d", port)
		ip := datagram(client, "172.31.0.11:54323").IP()
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() { w.path.FromLink(node2, [][]byte{bytes.Clone(ip)}) })
		}
		both.Wait()
		for range 2 {
			w.expect("b", "udp "+client+" > 10.244.1.11:8080")
		}
	}
	if n := w.path.flows.Stats().Len; n != 500 {
		t.Errorf("%d flows, want 500", n)
	}
}

func TestOneClientPortToManyServicesOverOneBackend(t *testing.T) {
	w := newWorld(t)
	w.from("a", segment("10.244.1.10:1000", "10.96.0.1:80", packet.SYN))
	w.expect("b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S")
	w.from("a", segment("10.244.1.10:1000", "10.96.0.6:80", packet.SYN))
	var p packet.Packet
	select {
	case f := <-w.devices["b"].Frames():
		p.ParseFrame(f)
	case <-time.After(await.Patience):
		t.Fatal("the second connection did not arrive")
	}
	if p.Tuple.SrcPort == 1000 {
		t.Fatal("the second connection arrived with the tuple of the first one")
	}
	w.from("b", segment("10.244.1.11:8080", fmt.Sprintf("10.244.1.10:%d", p.Tuple.SrcPort), packet.SYN|packet.ACK))
	w.expect("a", "tcp 10.96.0.6:80 > 10.244.1.10:1000 SA")
	w.from("b", segment("10.244.1.11:8080", "10.244.1.10:1000", packet.SYN|packet.ACK))
	w.expect("a", "tcp 10.96.0.1:80 > 10.244.1.10:1000 SA")
}

func TestTwoIngressNodesOneClientPort(t *testing.T) {
	w := newWorld(t)
	w.from("node-2 encap", segment("198.51.100.7:4000", "10.244.1.11:8080", packet.SYN))
	w.expect("b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 S")
	// The same client port, through this node's own host socket.
	conn := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
	defer cancel()
	go func() {
		c, err := w.path.Stack().Dial(ctx, "tcp", ap("198.51.100.7:4000"), ap("10.244.1.11:8080"))
		if c != nil {
			_ = c.Close()
		}
		conn <- err
	}()
	var p packet.Packet
	select {
	case f := <-w.devices["b"].Frames():
		p.ParseFrame(f)
	case <-time.After(await.Patience):
		t.Fatal("the second connection did not arrive")
	}
	if p.Tuple.Src.String() != "198.51.100.7" || p.Tuple.SrcPort == 4000 {
		t.Fatalf("the second connection came from %s:%d, want the client's address with another port", p.Tuple.Src, p.Tuple.SrcPort)
	}
	w.from("b", segment("10.244.1.11:8080", "198.51.100.7:4000", packet.SYN|packet.ACK))
	w.expect("link", "node-2 encap 10.244.1.1 > 10.244.2.1: tcp 10.244.1.11:8080 > 198.51.100.7:4000 SA")
	cancel()
	<-conn
}

func TestBackendLost(t *testing.T) {
	const S, A = packet.SYN, packet.ACK
	for _, c := range []struct {
		name   string
		state  packet.BackendState
		first  netstacktest.Spec
		next   netstacktest.Spec
		where  string
		want   string
		reason DropReason
	}{
		{"gone: its node says so to TCP", packet.BackendGone, segment("10.244.1.10:1000", "10.96.0.2:80", S), segment("10.244.1.10:1000", "10.96.0.2:80", A),
			"link", "node-2 tcp 10.244.1.10:1000 > 10.244.2.10:8080 A", 0},
		{"gone: a repeated SYN goes elsewhere", packet.BackendGone, segment("10.244.1.10:1000", "10.96.0.2:80", S), segment("10.244.1.10:1000", "10.96.0.2:80", S),
			"b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S", 0},
		{"draining: TCP goes on", packet.BackendDraining, segment("10.244.1.10:1000", "10.96.0.2:80", S), segment("10.244.1.10:1000", "10.96.0.2:80", A),
			"link", "node-2 tcp 10.244.1.10:1000 > 10.244.2.10:8080 A", 0},
		{"draining: a repeated SYN goes elsewhere", packet.BackendDraining, segment("10.244.1.10:1000", "10.96.0.2:80", S), segment("10.244.1.10:1000", "10.96.0.2:80", S),
			"b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S", 0},
		{"serving: TCP goes on", packet.BackendServing, segment("10.244.1.10:1000", "10.96.0.2:80", S), segment("10.244.1.10:1000", "10.96.0.2:80", A),
			"link", "node-2 tcp 10.244.1.10:1000 > 10.244.2.10:8080 A", 0},
		{"serving: a repeated SYN goes elsewhere", packet.BackendServing, segment("10.244.1.10:1000", "10.96.0.2:80", S), segment("10.244.1.10:1000", "10.96.0.2:80", S),
			"b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S", 0},
		// A pod that drains for long keeps its UDP clients so long (KEP-1669, kubernetes/kubernetes#137986).
		{"serving: UDP stays", packet.BackendServing, datagram("10.244.1.10:1000", "10.96.0.2:80"), datagram("10.244.1.10:1000", "10.96.0.2:80"),
			"link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:8080", 0},
		{"draining: UDP moves", packet.BackendDraining, datagram("10.244.1.10:1000", "10.96.0.2:80"), datagram("10.244.1.10:1000", "10.96.0.2:80"),
			"b", "udp 10.244.1.10:1000 > 10.244.1.11:8080", 0},
		{"gone: UDP moves", packet.BackendGone, datagram("10.244.1.10:1000", "10.96.0.2:80"), datagram("10.244.1.10:1000", "10.96.0.2:80"),
			"b", "udp 10.244.1.10:1000 > 10.244.1.11:8080", 0},
		{"ready: stays", packet.BackendReady, datagram("10.244.1.10:1000", "10.96.0.2:80"), datagram("10.244.1.10:1000", "10.96.0.2:80"),
			"link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:8080", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.from("a", c.first)
			<-w.link.Sent()
			w.balancer = &balancer{
				picks:  map[netip.AddrPort]packet.Choice{ap("10.96.0.2:80"): picked(1, "10.244.1.11:8080")},
				states: map[uint64]packet.BackendState{1: packet.BackendReady, 2: c.state},
			}
			w.set()
			w.from("a", c.next)
			w.expect(c.where, c.want)
			if c.reason != NotDropped {
				w.dropped(c.reason)
			}
		})
	}
}

// A backend on this node, or on one that cannot answer for it, is known to be gone: TCP is reset.
func TestBackendLostForGood(t *testing.T) {
	for name, c := range map[string]struct {
		to, at, first string
		change        func(*world)
	}{
		"another node, which does not answer": {"10.96.0.2:80", "link", "node-2 tcp 10.244.1.10:1000 > 10.244.2.10:8080 S", func(w *world) { w.config.Peers[0].Unready = true }},
		"another node, stock WireGuard":       {"10.96.0.2:80", "link", "node-2 tcp 10.244.1.10:1000 > 10.244.2.10:8080 S", func(w *world) { w.config.Peers[0].Encap = false }},
		"another node, which left":            {"10.96.0.2:80", "link", "node-2 tcp 10.244.1.10:1000 > 10.244.2.10:8080 S", func(w *world) { w.config.Peers = w.config.Peers[1:] }},
		"this node":                           {"10.96.0.1:80", "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S", func(*world) {}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.from("a", segment("10.244.1.10:1000", c.to, packet.SYN))
			w.expect(c.at, c.first)
			w.balancer = &balancer{}
			c.change(w)
			w.set()
			w.from("a", segment("10.244.1.10:1000", c.to, packet.ACK))
			w.expect("a", "tcp "+c.to+" > 10.244.1.10:1000 R")
			w.dropped(BackendGone)
		})
	}
}

func TestPathMTU(t *testing.T) {
	w := newWorld(t)
	w.link.SetMTU(1300)
	big := datagram("10.244.1.10:1000", "10.96.0.2:80")
	big.Payload = make([]byte, 1372)
	w.from("a", big)
	w.expect("a", "icmp 3/4 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 10.96.0.2:80")
	w.dropped(TooBig)
	big.MayFrag = true
	w.from("a", big)
	w.expect("link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:8080")
	w.expect("link", "node-2 udp 10.244.1.10:0 > 10.244.2.10:0")
}

func TestNothingBeforeTheFirstConfig(t *testing.T) {
	flows, err := flow.Open(make([]byte, flow.Size(64)), flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	path, err := New(Options{Flows: flows})
	if err != nil {
		t.Fatal(err)
	}
	d := netstacktest.NewDevice()
	if err := path.Attach(AttachmentConfig{Name: "a", MAC: packet.MAC{2}, Addrs: addresstest.Addrs("10.244.1.10")}, d); err != nil {
		t.Fatal(err)
	}
	d.Send(segment("10.244.1.10:1", "10.244.1.11:2", packet.SYN).Frame(packet.MAC{2}, tap.RouterMAC))
	path.FromLink(node2, [][]byte{segment("10.244.2.1:1", "10.244.1.10:2", packet.SYN).IP()})
	if s := path.Stats(); s.Drops["not-ready"] != 1 || len(s.Verdicts) != 1 {
		t.Errorf("stats %v, want one packet dropped as not-ready, and the pod's packet still waiting", s)
	}
	if err := path.Close(); err != nil {
		t.Fatal(err)
	}
}
