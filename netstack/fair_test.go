package netstack

import (
	"fmt"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// TestFloodedFlows: two pods send one another datagrams from all ports and echo them, until the flow table is full of
// answered flows. Then a flow that somebody else begins gets through at once: another pod, the host, another node.
func TestFloodedFlows(t *testing.T) {
	const capacity = 4096
	w, toB := hotNodeOf(t, capacity)
	w.path.snapshot.Load().balancer = &hotBalancer{}
	toA := w.from.dev.(*sink)
	toC, toHost := &sink{}, &sink{}
	for name, c := range map[string]struct {
		kind AttachmentKind
		dev  *sink
	}{"10.244.1.12": {PodTAP, toC}, "10.244.1.2": {HostTAP, toHost}} {
		if err := w.path.Attach(AttachmentConfig{Name: name, Kind: c.kind, MAC: packet.MAC{2, 1}, Addrs: addresstest.Addrs(name)}, c.dev); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, packet.MaxFrame)
	send := func(port string, s netstacktest.Spec) {
		w.from = w.path.attachments.table.Load().byName[port]
		buf = w.fromTAP(buf[:copy(buf[:cap(buf)], s.Frame(w.from.MAC, tap.RouterMAC))])
	}
	const a, b, c = "10.244.1.10", "10.244.1.11", "10.244.1.12"
	at := func(host string, port int) string { return fmt.Sprintf("%s:%d", host, port) }
	for n := range 2 * capacity {
		from, to := a, b
		if n%2 == 1 {
			from, to = b, a
		}
		there, port := 7+n/60000, 1024+n%60000
		send(from, datagram(at(from, port), at(to, there)))
		send(to, datagram(at(to, there), at(from, port))) // the echo
	}
	if s := w.path.flows.Stats(); s.Len != capacity || toA.frames != 2*capacity || toB.frames != 2*capacity {
		t.Fatalf("the table is not full, or the pods did not get their own: %d and %d frames, %+v", toA.frames, toB.frames, s)
	}

	through := 0
	try := func(got *sink, send func()) {
		before := got.frames
		if send(); got.frames == before+1 {
			through++
		}
	}
	for i := range 5 {
		try(toB, func() { send(c, segment(at(c, 40000+i), "10.96.0.1:80", packet.SYN)) })
		try(toC, func() { send("10.244.1.2", segment(at("10.244.1.2", 40000+i), at(c, 8080), packet.SYN)) })
		try(toC, func() { w.fromLink(node2, [][]byte{datagram(at("10.244.2.20", 40000+i), at(c, 53)).IP()}) })
	}
	if through != 15 {
		t.Errorf("%d of 15 new requests got through; drops: %v", through, w.path.Stats().Drops)
	}
	// Nor do they lose these flows to what the two pods send next.
	for n := range capacity {
		send(a, datagram(at(a, 1024+n), at(b, 9)))
		send(b, datagram(at(b, 9), at(a, 1024+n)))
	}
	answered := 0
	for i := range 5 {
		before := toC.frames
		if send(b, segment(at(b, 8080), at(c, 40000+i), packet.SYN|packet.ACK)); toC.frames == before+1 {
			answered++
		}
		before = toHost.frames
		if send(c, segment(at(c, 8080), at("10.244.1.2", 40000+i), packet.SYN|packet.ACK)); toHost.frames == before+1 {
			answered++
		}
	}
	s := w.path.flows.Stats()
	if answered != 10 || s.Full != 0 || s.Owners != 5 || s.Evicted.FromMost == 0 {
		t.Errorf("%d of 10 answers got back; %+v", answered, s)
	}
}
