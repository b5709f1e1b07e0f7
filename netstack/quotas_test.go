package netstack

import (
	"fmt"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/quota"
	"tapestry.dev/tapestry/netstack/tap"
)

// metered returns a hotNode whose pod a has a quota, with a clock that stands still.
func metered(t *testing.T, q quota.Quota) (*worker, *sink) {
	w, b := hotNode(t)
	w.path.snapshot.Load().balancer = hotBalancer{}
	w.path.now = (&hands{time.Unix(1, 0)}).now
	w.path.SetQuotas(map[string]quota.Quota{podA: q})
	return w, b
}

// statsOf returns the counters of an attachment.
func statsOf(p *Path, name string) AttachmentStats {
	for _, a := range p.Attachments() {
		if a.Name == name {
			return a
		}
	}
	return AttachmentStats{}
}

func TestOverPackets(t *testing.T) {
	w, b := metered(t, quota.Quota{Packets: 1000})
	frame, buf := datagram(podA+":1", podB+":2").Frame(w.from.MAC, tap.RouterMAC), make([]byte, packet.MaxFrame)
	send := func() { buf = w.fromTAP(buf[:copy(buf[:cap(buf)], frame)]) }
	for range 250 {
		send()
	}
	if b.frames != 100 || w.drops[OverPackets].Load() != 150 {
		t.Errorf("%d frames arrived, want 100; %+v", b.frames, w.path.Stats())
	}
	if s := statsOf(w.path, podA); s.OverPackets != 150 || s.OverFlows != 0 || s.Quota.Packets != 1000 {
		t.Errorf("%+v", s)
	}
	if n := testing.AllocsPerRun(100, send); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
	// What others send to the pod is not its own.
	w.fromRelay(datagram("198.51.100.1:80", podA+":1000").IP(), packet.VNetHdr{})
	if s := statsOf(w.path, podA); s.ToPackets != 1 {
		t.Errorf("the pod got %d packets of somebody else, want 1", s.ToPackets)
	}
}

// A superframe counts as the packets that it becomes.
func TestOverPacketsCountsSegments(t *testing.T) {
	w, _ := metered(t, quota.Quota{Packets: 1000})
	spec := segment(podA+":1", podB+":2", packet.ACK)
	spec.Payload = make([]byte, 40*1000)
	frame, buf := super(spec, w.from.MAC, 1000), make([]byte, packet.MaxFrame)
	for range 10 {
		buf = w.fromTAP(buf[:copy(buf[:cap(buf)], frame)])
	}
	if n := statsOf(w.path, podA).OverPackets; n != 7*40 {
		t.Errorf("%d packets were over the quota, want %d: %+v", n, 7*40, w.path.Stats())
	}
}

func TestOverFlows(t *testing.T) {
	w, b := metered(t, quota.Quota{Flows: 20})
	buf := make([]byte, packet.MaxFrame)
	send := func(s netstacktest.Spec) {
		buf = w.fromTAP(buf[:copy(buf[:cap(buf)], s.Frame(w.from.MAC, tap.RouterMAC))])
	}
	for i := range 50 {
		send(segment(fmt.Sprintf("%s:%d", podA, 1000+i), podB+":80", packet.SYN))
	}
	if b.frames != 20 || w.drops[OverFlows].Load() != 30 {
		t.Fatalf("%d SYNs arrived, want 20; %+v", b.frames, w.path.Stats())
	}
	// Connections that have begun go on, and answers to others begin nothing.
	for range 100 {
		send(segment(podA+":1000", podB+":80", packet.ACK))
	}
	if b.frames != 120 {
		t.Errorf("%d packets arrived, want 120: %+v", b.frames, w.path.Stats())
	}
	// What nobody serves costs as much: otherwise a scan would be free.
	if s := statsOf(w.path, podA); s.OverFlows != 30 {
		t.Errorf("%+v", s)
	}
	send(segment(podA+":2000", "10.244.1.77:80", packet.SYN))
	if s := statsOf(w.path, podA); s.OverFlows != 31 {
		t.Errorf("a SYN to nobody was not counted: %+v", s)
	}
}

// Quotas come, change and go while the pod is there, and hold for one that comes later; what does not change goes on.
func TestSetQuotas(t *testing.T) {
	w := newWorld(t)
	set := func(q map[string]quota.Quota) { w.path.SetQuotas(q) }
	set(map[string]quota.Quota{"a": {Flows: 5}, "later": {Packets: 7}, "host": {Packets: 1}})
	if q := statsOf(w.path, "a").Quota; q.Flows != 5 {
		t.Errorf("a has %+v", q)
	}
	w.attach("later", PodTAP, "10.244.1.40")
	if q := statsOf(w.path, "later").Quota; q.Packets != 7 {
		t.Errorf("a pod that came later has %+v", q)
	}
	if q := statsOf(w.path, "host").Quota; q != (quota.Quota{}) {
		t.Errorf("the host TAP has %+v", q)
	}
	for i := range 9 {
		w.from("a", segment(fmt.Sprintf("10.244.1.10:%d", 1000+i), "10.244.1.11:80", packet.SYN))
	}
	w.counted(OverFlows, 4)
	set(map[string]quota.Quota{"a": {Flows: 5}})
	if s := statsOf(w.path, "a"); s.OverFlows != 4 {
		t.Errorf("an equal quota began anew: %+v", s)
	}
	if q := statsOf(w.path, "later").Quota; q != (quota.Quota{}) {
		t.Errorf("a quota that went away holds: %+v", q)
	}
	set(nil)
	w.from("a", segment("10.244.1.10:2000", "10.244.1.11:80", packet.SYN))
	w.until(func() bool { return w.path.flows.Peek(tupleOf("10.244.1.10:2000", "10.244.1.11:80"), new(flow.Hit)) })
}

func tupleOf(src, dst string) *packet.Tuple {
	from, to := packet.EndpointFrom(ap(src)), packet.EndpointFrom(ap(dst))
	return &packet.Tuple{Src: from.Addr, Dst: to.Addr, SrcPort: from.Port, DstPort: to.Port, Proto: packet.TCP}
}

// arpRequest returns the frame with which a pod asks who has 10.244.1.1.
func arpRequest(from packet.MAC) []byte {
	b := make([]byte, packet.VNetHdrLen, packet.HeadLen+28)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, from[:]...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(b, from[:]...)
	b = append(b, 10, 244, 1, 10, 0, 0, 0, 0, 0, 0)
	return append(b, 10, 244, 1, 1)
}

// What is dropped or answered at the door is charged as well.
func TestOverPacketsBeforeAdmission(t *testing.T) {
	spec := datagram(podA+":1", podB+":2")
	for name, frame := range map[string]func(w *worker) []byte{
		"another pod's MAC":     func(*worker) []byte { return spec.Frame(packet.MAC{2, 0xbb}, tap.RouterMAC) },
		"another pod's address": func(w *worker) []byte { return datagram(podB+":1", podA+":2").Frame(w.from.MAC, tap.RouterMAC) },
		"ARP":                   func(w *worker) []byte { return arpRequest(w.from.MAC) },
	} {
		w, _ := metered(t, quota.Quota{Packets: 1000})
		f, buf := frame(w), make([]byte, packet.MaxFrame)
		for range 250 {
			buf = w.fromTAP(buf[:copy(buf[:cap(buf)], f)])
		}
		if n := w.drops[OverPackets].Load(); n != 150 {
			t.Errorf("%s: %d frames were over the quota, want 150: %+v", name, n, w.path.Stats())
		}
	}
}
