package netstack

import (
	"encoding/binary"
	"testing"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// Types of SCTP chunks (RFC 9260 3.2).
const (
	sctpData         = 0
	sctpInit         = 1
	sctpInitAck      = 2
	sctpAbort        = 6
	sctpShutdown     = 7
	sctpShutdownAck  = 8
	sctpCookieEcho   = 10
	sctpShutdownDone = 14
)

// association returns an SCTP packet with one chunk, whose value is 20 bytes long.
func association(src, dst string, chunk uint8) netstacktest.Spec {
	value := make([]byte, 24)
	value[0] = chunk
	binary.BigEndian.PutUint16(value[2:], 24)
	binary.BigEndian.PutUint32(value[4:], 0x11223344) // the initiate tag of INIT
	return netstacktest.Spec{Src: ap(src), Dst: ap(dst), Proto: packet.SCTP, Seq: 0x55667788, Payload: value}
}

// TestSCTPFlows: SCTP is translated like TCP, by every way. The checksum of what arrives is verified (describe).
func TestSCTPFlows(t *testing.T) {
	const client = "198.51.100.7:4000"
	for name, steps := range map[string][]step{
		"ClusterIP with a backend here": {
			{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpInit), "b", "sctp 10.244.1.10:1000 > 10.244.1.11:8080 S", 0},
			{"b", association("10.244.1.11:8080", "10.244.1.10:1000", sctpInitAck), "a", "sctp 10.96.0.1:80 > 10.244.1.10:1000 SA", 0},
			{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpCookieEcho), "b", "sctp 10.244.1.10:1000 > 10.244.1.11:8080 A", 0},
			{"b", association("10.244.1.11:8080", "10.244.1.10:1000", sctpData), "a", "sctp 10.96.0.1:80 > 10.244.1.10:1000 A", 0},
			{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpShutdown), "b", "sctp 10.244.1.10:1000 > 10.244.1.11:8080 FA", 0},
			{"b", association("10.244.1.11:8080", "10.244.1.10:1000", sctpShutdownAck), "a", "sctp 10.96.0.1:80 > 10.244.1.10:1000 FA", 0},
		},
		"ClusterIP, IPv6": {
			{"a", association("[fd00:10:244:1::10]:1000", "[fd00:10:96::1]:80", sctpInit), "b", "sctp [fd00:10:244:1::10]:1000 > [fd00:10:244:1::11]:8080 S", 0},
			{"b", association("[fd00:10:244:1::11]:8080", "[fd00:10:244:1::10]:1000", sctpInitAck), "a", "sctp [fd00:10:96::1]:80 > [fd00:10:244:1::10]:1000 SA", 0},
		},
		"ClusterIP with a backend on another node": {
			{"a", association("10.244.1.10:1000", "10.96.0.2:80", sctpInit), "link", "node-2 sctp 10.244.1.10:1000 > 10.244.2.10:8080 S", 0},
			{"node-2", association("10.244.2.10:8080", "10.244.1.10:1000", sctpInitAck), "a", "sctp 10.96.0.2:80 > 10.244.1.10:1000 SA", 0},
		},
		"a pod reaches itself": {
			{"a", association("10.244.1.10:1000", "10.96.0.4:80", sctpInit), "a", "sctp 10.244.1.1:1000 > 10.244.1.10:8080 S", 0},
			{"a", association("10.244.1.10:8080", "10.244.1.1:1000", sctpInitAck), "a", "sctp 10.96.0.4:80 > 10.244.1.10:1000 SA", 0},
		},
		"a node port, from a pod": {
			{"a", association("10.244.1.10:1000", "172.31.0.11:30080", sctpInit), "link", "node-2 sctp 10.244.1.10:1000 > 10.244.2.10:8080 S", 0},
			{"node-2", association("10.244.2.10:8080", "10.244.1.10:1000", sctpInitAck), "a", "sctp 172.31.0.11:30080 > 10.244.1.10:1000 SA", 0},
		},
		"a load balancer, with a backend here": {
			{"host", association(client, "203.0.113.1:80", sctpInit), "b", "sctp 198.51.100.7:4000 > 10.244.1.11:8080 S", 0},
			{"b", association("10.244.1.11:8080", client, sctpInitAck), "host", "sctp 203.0.113.1:80 > 198.51.100.7:4000 SA", 0},
		},
		"a load balancer, with a backend on another node": {
			{"host", association(client, "203.0.113.2:80", sctpInit), "link", encapOut + "sctp 198.51.100.7:4000 > 10.244.2.10:8080 S", 0},
			{"node-2 encap", association("10.244.2.10:8080", client, sctpInitAck), "host", "sctp 203.0.113.2:80 > 198.51.100.7:4000 SA", 0},
		},
		"no endpoints": {
			{"a", association("10.244.1.10:1000", "10.96.0.3:80", sctpInit), "a", "sctp 10.96.0.3:80 > 10.244.1.10:1000 R", NoEndpoints},
		},
		"no such port, from outside": {
			{"host", association(client, "203.0.113.1:81", sctpInit), "host", "sctp 203.0.113.1:81 > 198.51.100.7:4000 R", UnknownPort},
		},
		"an ABORT is not answered": {
			{"a", association("10.244.1.10:1000", "10.96.0.3:80", sctpAbort), "", "", NoEndpoints},
		},
		"to the outside": {
			{"a", association("10.244.1.10:1000", "192.0.2.1:80", sctpInit), "a", "icmp 3/13 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 192.0.2.1:80", NoRoute},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRoutedWorld(t)
			w.take(steps)
		})
	}
}

// TestSCTPBackendLost: an association whose pod is gone is aborted, and the next one goes to another pod.
func TestSCTPBackendLost(t *testing.T) {
	w := newWorld(t)
	w.exchange(exchange{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpInit), "b", "sctp 10.244.1.10:1000 > 10.244.1.11:8080 S"})
	w.exchange(exchange{"b", association("10.244.1.11:8080", "10.244.1.10:1000", sctpInitAck), "a", "sctp 10.96.0.1:80 > 10.244.1.10:1000 SA"})
	w.exchange(exchange{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpCookieEcho), "b", "sctp 10.244.1.10:1000 > 10.244.1.11:8080 A"})
	w.balancer = &balancer{picks: w.balancer.picks, states: map[uint64]packet.BackendState{2: packet.BackendReady}}
	w.balancer.picks[ap("10.96.0.1:80")] = picked(2, "10.244.2.10:8080")
	w.set()
	w.exchange(exchange{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpData), "a", "sctp 10.96.0.1:80 > 10.244.1.10:1000 R"})
	w.dropped(BackendGone)
	w.exchange(exchange{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpInit), "link", "node-2 sctp 10.244.1.10:1000 > 10.244.2.10:8080 S"})
}

// TestSCTPPortReused: an association that is shut down leaves its tuples to the next one.
func TestSCTPPortReused(t *testing.T) {
	w := newWorld(t)
	for _, e := range []exchange{
		{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpInit), "b", "sctp 10.244.1.10:1000 > 10.244.1.11:8080 S"},
		{"b", association("10.244.1.11:8080", "10.244.1.10:1000", sctpInitAck), "a", "sctp 10.96.0.1:80 > 10.244.1.10:1000 SA"},
		{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpShutdown), "b", "sctp 10.244.1.10:1000 > 10.244.1.11:8080 FA"},
		{"b", association("10.244.1.11:8080", "10.244.1.10:1000", sctpShutdownAck), "a", "sctp 10.96.0.1:80 > 10.244.1.10:1000 FA"},
		{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpShutdownDone), "b", "sctp 10.244.1.10:1000 > 10.244.1.11:8080 FA"},
	} {
		w.exchange(e)
	}
	tuple := packet.Tuple{Src: packet.AddrFrom(ap("10.244.1.10:1").Addr()), Dst: packet.AddrFrom(ap("10.96.0.1:1").Addr()), SrcPort: 1000, DstPort: 80, Proto: packet.SCTP}
	var hit flow.Hit
	if !w.path.flows.Peek(&tuple, &hit) || hit.State != flow.TimeWait {
		t.Errorf("after the shutdown the flow is %v", hit.State)
	}
	w.balancer = &balancer{picks: w.balancer.picks, states: w.balancer.states}
	w.balancer.picks[ap("10.96.0.1:80")] = picked(2, "10.244.2.10:8080")
	w.set()
	w.exchange(exchange{"a", association("10.244.1.10:1000", "10.96.0.1:80", sctpInit), "link", "node-2 sctp 10.244.1.10:1000 > 10.244.2.10:8080 S"})
}
