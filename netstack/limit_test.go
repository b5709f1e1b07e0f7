package netstack

import (
	"fmt"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/pace"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// hands is a clock that the test sets.
type hands struct{ at time.Time }

func (h *hands) now() time.Time { return h.at }

// limitedNode is a hotNode whose pod b has a limit, with a clock that stands still.
func limitedNode(t *testing.T, r tap.Rate) (*worker, *sink) {
	w, b := hotNode(t)
	w.path.snapshot.Load().balancer = hotBalancer{}
	att := w.path.attachments.table.Load().byName[podB]
	att.limit = pace.New(r, (&hands{time.Unix(1, 0)}).now, nil)
	return w, b
}

func TestOverLimit(t *testing.T) {
	w, b := limitedNode(t, tap.Rate{Bits: 8 << 20})
	spec := datagram(podA+":1", podB+":2")
	spec.Payload = make([]byte, 1024-28)
	frame, buf := spec.Frame(w.from.MAC, tap.RouterMAC), make([]byte, packet.MaxFrame)
	send := func() { buf = w.fromTAP(buf[:copy(buf[:cap(buf)], frame)]) }
	const sent = 600
	for range sent {
		send()
	}
	const once = 129 // packets that the bucket holds
	waiting := w.path.attachments.table.Load().byName[podB].limit.Waiting()
	dropped := uint64(sent - once - waiting)
	if b.frames != once || waiting != 4*packet.MaxFrame/(4+packet.HeadLen+1024) || w.drops[OverLimit].Load() != dropped || w.verdicts[Dropped].Load() != dropped {
		t.Errorf("%d frames arrived, want %d; %d wait; %+v", b.frames, once, waiting, w.path.Stats())
	}
	for _, p := range w.path.Attachments() {
		if p.Name == podB && (p.ToPackets != once || p.OverLimit != dropped) {
			t.Errorf("%+v", p)
		}
	}
	if n := testing.AllocsPerRun(100, send); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
	// A TCP packet of the relay has waited before; its datagrams have not.
	before := b.frames
	w.fromRelay(segment("198.51.100.1:80", podB+":1000", packet.ACK).IP(), packet.VNetHdr{})
	w.fromRelay(datagram("198.51.100.1:80", podB+":1000").IP(), packet.VNetHdr{})
	if b.frames != before+1 {
		t.Errorf("%d frames of the relay arrived, want one; %+v", b.frames-before, w.path.Stats())
	}
	limited, wait := w.path.pace(packet.AddrFrom(addresstest.Addrs(podB)[0]))
	if other, _ := w.path.pace(packet.AddrFrom(addresstest.Addrs(podA)[0])); !limited || wait <= 0 || other {
		t.Errorf("%v, %s, %v", limited, wait, other)
	}
}

// Packets that waited arrive in order; at an attachment without offloads they arrive as segments.
func TestBacklog(t *testing.T) {
	w := newWorld(t)
	w.attach("c", PodTAP, "10.244.1.12")
	w.path.Detach("c")
	d := netstacktest.NewDevice()
	w.devices["c"] = d
	c := AttachmentConfig{Name: "c", MAC: w.macs["c"], Addrs: addresstest.Addrs("10.244.1.12"), Limit: tap.Rate{Bits: 80e6}}
	if err := w.path.Attach(c, d); err != nil {
		t.Fatal(err)
	}
	go func() {
		for i := range 300 { // twice as many as may be sent at once
			s := datagram("10.244.1.10:1000", fmt.Sprint("10.244.1.12:", 2000+i))
			s.Payload = make([]byte, 1300)
			w.from("a", s)
		}
	}()
	for i := range 300 {
		w.expect("c", fmt.Sprint("udp 10.244.1.10:1000 > 10.244.1.12:", 2000+i))
	}
}

// BenchmarkLimited measures what a limit costs per packet.
func BenchmarkLimited(b *testing.B) {
	for name, r := range map[string]tap.Rate{"none": {}, "never reached": {Bits: 1e15, Burst: 1e15}} {
		b.Run(name, func(b *testing.B) {
			w, _, send := established(b, segment(podA+":1000", podB+":80", packet.ACK))
			w.path.attachments.table.Load().byName[podB].limit = pace.New(r, time.Now, nil)
			b.ReportAllocs()
			for b.Loop() {
				send()
			}
			if n := w.drops[OverLimit].Load(); n != 0 {
				b.Fatal(n)
			}
		})
	}
}
