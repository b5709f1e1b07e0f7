package quota

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// hands is a clock that the test sets.
type hands struct{ at time.Time }

func (h *hands) now() time.Time { return h.at }

func TestMeter(t *testing.T) {
	for name, tc := range map[string]struct {
		quota Quota
		size  int           // packets that come at once
		every time.Duration // between two of these
		after int           // how many of these
		want  int           // packets that may go, and flows when each began one
		flows int
	}{
		"no limit":              {Quota{Packets: 0, Flows: 7}, 1, 0, 1000, 1000, 7},
		"a burst of packets":    {Quota{Packets: 10_000}, 1, 0, 5000, 1000, 5000},
		"the least burst":       {Quota{Packets: 1}, 1, 0, 1000, 64, 1000},
		"a burst of flows":      {Quota{Flows: 50}, 1, 0, 1000, 1000, 50},
		"one flow a second":     {Quota{Flows: 1}, 1, 100 * time.Millisecond, 100, 100, 10},
		"within the rate":       {Quota{Packets: 1000, Flows: 1000}, 1, time.Millisecond, 3000, 3000, 3000},
		"twice the rate":        {Quota{Packets: 1000, Flows: 500}, 2, time.Millisecond, 10_000, 10_000 + 98, 5000 + 499},
		"superframes":           {Quota{Packets: 1000}, 45, time.Millisecond, 10_000, 10_000 + 125, 10_000},
		"the largest":           {Quota{Packets: Most, Flows: Most}, 1000, time.Microsecond, 1000, 1_000_000, 1000},
		"slower than any frame": {Quota{Packets: 1}, 1000, time.Second, 3000, 4000, 3000},
	} {
		clock := &hands{time.Unix(1, 0)}
		m := NewMeter(tc.quota, clock.now)
		packets, flows := 0, 0
		for range tc.after {
			if m.Packet(tc.size) {
				packets += tc.size
			}
			if m.Flow() {
				flows++
			}
			clock.at = clock.at.Add(tc.every)
		}
		if packets < tc.want-tc.size || packets > tc.want+tc.size || flows < tc.flows-1 || flows > tc.flows+1 {
			t.Errorf("%s: %d packets and %d flows, want %d and %d", name, packets, flows, tc.want, tc.flows)
		}
		if over := m.OverPackets.Load(); over != uint64(tc.after*tc.size-packets) {
			t.Errorf("%s: %d packets were counted as over, want %d", name, over, tc.after*tc.size-packets)
		}
		if over := m.OverFlows.Load(); over != uint64(tc.after-flows) {
			t.Errorf("%s: %d flows were counted as over, want %d", name, over, tc.after-flows)
		}
	}
	if NewMeter(Quota{}, time.Now) != nil {
		t.Error("a Quota without limits has a Meter")
	}
}

// slow is a bucket that is filled unit by unit, as one would write it first.
type slow struct {
	rate, most, tokens float64
	at                 time.Duration
}

func (s *slow) take(n int, now time.Duration) bool {
	s.tokens = min(s.most, s.tokens+s.rate*(now-s.at).Seconds())
	s.at = now
	if s.tokens < 1 {
		return false
	}
	s.tokens -= float64(n)
	return true
}

// Whatever comes when, the bucket lets as much through as the slow one, but for what rounding a nanosecond may do.
func TestBucketAgainstSlow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		rate := uint32(1 + r.IntN(100_000))
		var b bucket
		b.fill(rate, packetBurst, fewestPackets)
		s := slow{rate: 1e9 / float64(b.each), most: float64(b.full) / float64(b.each)}
		s.tokens = s.most
		now, got, want := time.Duration(0), 0, 0
		for range 2000 {
			n := 1 + r.IntN(64)
			now += time.Duration(r.ExpFloat64() * 40 * 1e9 / float64(rate))
			if b.take(n, int64(now)) {
				got += n
			}
			if s.take(n, now) {
				want += n
			}
		}
		if diff := got - want; diff < -128 || diff > 128 {
			t.Errorf("%d a second: %d went, and %d by the slow one", rate, got, want)
		}
	}
}

// Many at once get no more than one would.
func TestMeterIsShared(t *testing.T) {
	clock := &hands{time.Unix(1, 0)}
	m := NewMeter(Quota{Packets: 20_000, Flows: 300}, clock.now)
	var packets, flows atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				if m.Packet(1) {
					packets.Add(1)
				}
				if m.Flow() {
					flows.Add(1)
				}
			}
		})
	}
	all.Wait()
	if packets.Load() != 2000 || flows.Load() != 300 {
		t.Errorf("%d packets and %d flows, want 2000 and 300", packets.Load(), flows.Load())
	}
	if n := testing.AllocsPerRun(100, func() { m.Packet(1); m.Flow() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
