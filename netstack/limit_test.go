package netstack

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// hands is a clock that is set by hand.
type hands struct{ at time.Time }

func (h *hands) now() time.Time { return h.at }

func TestLimitTakes(t *testing.T) {
	const least = 128 << 10 // what a bucket holds at least, in bytes
	for name, tc := range map[string]struct {
		rate  tap.Rate
		size  int           // of each packet, in bytes
		every time.Duration // between two
		after int           // as many packets
		want  int           // are let through, within one
	}{
		"at once":             {tap.Rate{Bits: 8 << 20}, 1024, 0, 1000, least/1024 + 1}, // the last one leaves debts
		"a larger bucket":     {tap.Rate{Bits: 8 << 20, Burst: 8 * 256 << 10}, 1024, 0, 1000, 2*least/1024 + 1},
		"a second's at most":  {tap.Rate{Bits: 8 << 20, Burst: math.MaxUint64}, 1024, 0, 5000, 1025},
		"within the rate":     {tap.Rate{Bits: 8 << 20}, 1 << 10, time.Millisecond, 5000, 5000},
		"twice the rate":      {tap.Rate{Bits: 8 << 20}, 2 << 10, time.Millisecond, 5000, 2560 + 64},
		"superframes":         {tap.Rate{Bits: 100e6}, 65000, time.Millisecond, 10000, 1923},
		"faster than a clock": {tap.Rate{Bits: 400e9}, 1500, time.Microsecond, 5000, 5000},
		"slower than a frame": {tap.Rate{Bits: 8}, 65000, time.Second, 5000, 3},
	} {
		clock := &hands{time.Unix(1, 0)}
		l, passed := newLimit(tc.rate, clock.now), 0
		for range tc.after {
			if l.take(tc.size, false) {
				passed++
			} else if l.wait() <= 0 {
				t.Errorf("%s: refused, and nothing to wait for", name)
			}
			clock.at = clock.at.Add(tc.every)
		}
		// What a bucket holds comes on top of the rate; beside a long run it is little.
		if slack := 1 + tc.want/16; passed < tc.want-slack || passed > tc.want+slack {
			t.Errorf("%s: %d of %d packets were let through, want %d", name, passed, tc.after, tc.want)
		}
	}
	if newLimit(tap.Rate{Burst: 8}, time.Now) != nil {
		t.Error("a bucket without a rate")
	}
}

// Who waits is let through, and the others pay.
func TestLimitOnCredit(t *testing.T) {
	clock := &hands{time.Unix(1, 0)}
	l := newLimit(tap.Rate{Bits: 8e6}, clock.now) // a byte each microsecond
	for range 10 {
		if !l.take(128<<10, true) {
			t.Fatal("refused")
		}
	}
	if got, want := l.wait(), 9*128<<10*time.Microsecond; (got - want).Abs() > time.Millisecond {
		t.Errorf("to wait %s, want %s", got, want)
	}
	if l.take(1, false) {
		t.Error("a packet went before the debts were paid")
	}
	clock.at = clock.at.Add(l.wait())
	if l.wait() != 0 || !l.take(1, false) {
		t.Error("nothing goes although all was paid")
	}
}

// limitedNode is a hotNode whose pod b is limited, by a clock that stands still.
func limitedNode(t *testing.T, r tap.Rate) (*worker, *sink) {
	w, b := hotNode(t)
	w.node.snapshot.Load().balancer = hotBalancer{}
	p := w.node.ports.table.Load().byName[podB]
	p.limit = newLimit(r, (&hands{time.Unix(1, 0)}).now)
	return w, b
}

func TestOverLimit(t *testing.T) {
	w, b := limitedNode(t, tap.Rate{Bits: 8 << 20})
	spec := datagram(podA+":1", podB+":2")
	spec.Payload = make([]byte, 1024-28)
	frame, buf := spec.Frame(w.port.MAC, tap.GatewayMAC), make([]byte, packet.MaxFrame)
	send := func() { buf = w.fromPort(buf[:copy(buf[:cap(buf)], frame)]) }
	const sent = 600
	for range sent {
		send()
	}
	const once = 129 // what the bucket holds
	waiting := int(w.node.ports.table.Load().byName[podB].limit.queue.waiting.Load())
	dropped := uint64(sent - once - waiting)
	if b.frames != once || waiting != leastQueue/(4+packet.HeadLen+1024) || w.drops[OverLimit].Load() != dropped || w.verdicts[Dropped].Load() != dropped {
		t.Errorf("%d frames arrived, want %d; %d wait; %+v", b.frames, once, waiting, w.node.Stats())
	}
	for _, p := range w.node.Ports() {
		if p.Name == podB && (p.ToPackets != once || p.OverLimit != dropped) {
			t.Errorf("%+v", p)
		}
	}
	if n := testing.AllocsPerRun(100, send); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
	// TCP of the relay has waited by itself. Its datagrams have not.
	before := b.frames
	w.fromRelay(segment("198.51.100.1:80", podB+":1000", packet.ACK).IP(), packet.VNetHdr{})
	w.fromRelay(datagram("198.51.100.1:80", podB+":1000").IP(), packet.VNetHdr{})
	if b.frames != before+1 {
		t.Errorf("%d frames of the relay arrived, want one; %+v", b.frames-before, w.node.Stats())
	}
	limited, wait := w.node.pace(packet.AddrFrom(addrs(podB)[0]))
	if other, _ := w.node.pace(packet.AddrFrom(addrs(podA)[0])); !limited || wait <= 0 || other {
		t.Errorf("%v, %s, %v", limited, wait, other)
	}
}

// What has waited comes in order, and goes on to a Port without offloads in segments.
func TestBacklog(t *testing.T) {
	w := newWorld(t)
	w.attach("c", PodPort, "10.244.1.12")
	w.node.Detach("c")
	d := netstacktest.NewDevice()
	w.devices["c"] = d
	c := PortConfig{Name: "c", MAC: w.macs["c"], Addrs: addrs("10.244.1.12"), Limit: tap.Rate{Bits: 80e6}}
	if err := w.node.Attach(c, d); err != nil {
		t.Fatal(err)
	}
	go func() {
		for i := range 300 { // twice as much as may come at once
			s := datagram("10.244.1.10:1000", fmt.Sprint("10.244.1.12:", 2000+i))
			s.Payload = make([]byte, 1300)
			w.from("a", s)
		}
	}()
	for i := range 300 {
		w.expect("c", fmt.Sprint("udp 10.244.1.10:1000 > 10.244.1.12:", 2000+i))
	}
}

func TestRing(t *testing.T) {
	for size := range 64 {
		r, held, next := ring{buf: make([]byte, size)}, [][]byte(nil), byte(0)
		random := rand.New(rand.NewPCG(1, uint64(size)))
		for range 2000 {
			if random.IntN(2) == 0 {
				if f := r.push(1 + random.IntN(12)); f != nil {
					for i := range f {
						f[i] = next
					}
					held = append(held, bytes.Clone(f))
					next++
				} else if len(held) == 0 && size >= 20 {
					t.Fatalf("size %d: there is no room in an empty ring", size)
				}
				continue
			}
			got := r.peek()
			switch {
			case len(held) == 0:
				if got != nil {
					t.Fatalf("size %d: %v in an empty ring", size, got)
				}
			case !bytes.Equal(got, held[0]):
				t.Fatalf("size %d: got %v, want %v", size, got, held[0])
			default:
				r.pop()
				held = held[1:]
			}
		}
	}
}

// BenchmarkLimited is what a limit costs per packet.
func BenchmarkLimited(b *testing.B) {
	for name, r := range map[string]tap.Rate{"none": {}, "never reached": {Bits: 1e15, Burst: 1e15}} {
		b.Run(name, func(b *testing.B) {
			w, _, send := established(b, segment(podA+":1000", podB+":80", packet.ACK))
			w.node.ports.table.Load().byName[podB].limit = newLimit(r, time.Now)
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
