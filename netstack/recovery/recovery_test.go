package recovery

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// RFC 6298 2.2 and 2.3 by hand, and the bounds.
func TestTimeout(t *testing.T) {
	for _, c := range []struct {
		name    string
		samples []time.Duration
		want    time.Duration
	}{
		{"nothing is known", nil, time.Second},
		{"first: R + 4*R/2", []time.Duration{100 * time.Millisecond}, 300 * time.Millisecond},
		// SRTT = 100 + (180-100)/8 = 110, RTTVAR = 50 + (80-50)/4 = 57.5
		{"second", []time.Duration{100 * time.Millisecond, 180 * time.Millisecond}, 340 * time.Millisecond},
		{"not below the least", []time.Duration{time.Microsecond}, 200*time.Millisecond + time.Microsecond},
		{"no time at all", []time.Duration{0}, 200*time.Millisecond + time.Microsecond},
		{"not above the most", []time.Duration{time.Minute}, 20 * time.Second},
	} {
		var r RTT
		for _, s := range c.samples {
			r.Sample(s)
		}
		if got := r.Timeout(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// A steady round trip leaves room for one that takes longer, as on a link that is shared.
func TestSteadyRoundTrip(t *testing.T) {
	var r RTT
	for range 100 {
		r.Sample(300 * time.Millisecond)
	}
	if got := r.Timeout(); got < 490*time.Millisecond {
		t.Errorf("%v; a round trip of 450 ms would be a loss", got)
	}
}

// A round trip that becomes longer than the timeout is measured after a few timeouts, and until then they do not become
// shorter again. Nothing waits for longer than a second.
func TestLongerRoundTrip(t *testing.T) {
	var r RTT
	for range 100 {
		r.Sample(10 * time.Millisecond)
	}
	expired := 0
	for ; r.Timeout() <= 400*time.Millisecond; expired++ {
		if expired == 3 {
			t.Fatalf("%v after %d timeouts", r.Timeout(), expired)
		}
		r.Expired() // what was sent comes back 400 ms later, and was sent twice
	}
	for range 10 {
		r.Expired()
	}
	if got := r.Timeout(); got != time.Second {
		t.Errorf("%v after many timeouts, want a second", got)
	}
	r.Sample(400 * time.Millisecond)
	if got := r.Timeout(); got < 400*time.Millisecond || got >= time.Second {
		t.Errorf("%v after a sample", got)
	}
}

// all is more than any window.
const all = 1 << 30

// round has the window acknowledged once, a segment at a time, within rtt.
func round(w *Window, mss int, now *time.Duration, rtt time.Duration) {
	for left := w.Size(); left > 0; left -= mss {
		w.Acked(min(left, mss), *now, rtt)
	}
	*now += rtt
}

func TestSlowStart(t *testing.T) {
	const mss = 1400
	var w Window
	var now time.Duration
	w.Init(mss)
	if w.Size() != 14000 {
		t.Fatalf("begins with %d, want 14000", w.Size())
	}
	w2 := w
	w2.Init(5000)
	if w2.Size() != 14600 {
		t.Errorf("large segments begin with %d, want 14600", w2.Size())
	}
	for want := 28000; want < 1<<20; want *= 2 {
		round(&w, mss, &now, 10*time.Millisecond)
		if w.Size() != want {
			t.Fatalf("grew to %d in a round trip, want %d", w.Size(), want)
		}
	}
}

// After a loss the window follows the curve of RFC 9438 4.2: it is where it was after K, and hardly grows around it.
func TestCubic(t *testing.T) {
	const mss, rtt = 1000, 100 * time.Millisecond
	var w Window
	w.Init(mss)
	w.size = 1000 * mss
	w.Lost(all)
	if got := w.Size(); got != 700*mss {
		t.Fatalf("%d after a loss, want 0.7 of it", got)
	}
	k := math.Cbrt(300 / 0.4) // 9.086 s
	var now time.Duration
	for now.Seconds() < k-0.5 {
		round(&w, mss, &now, rtt)
		twin := 1000 + 0.4*math.Pow(now.Seconds()-k, 3) // what RFC 9438 4.2 says, a round trip ahead
		if got := w.size / mss; math.Abs(got-twin) > 0.02*twin {
			t.Fatalf("%.0f segments after %v, want %.0f", got, now, twin)
		}
	}
	for now.Seconds() < k+5 {
		round(&w, mss, &now, rtt)
	}
	if got, twin := w.size/mss, 1000+0.4*125; math.Abs(got-twin) > 0.02*twin {
		t.Errorf("%.0f segments five seconds past K, want %.0f", got, twin)
	}
}

// Where round trips are short it grows as Reno does, and is no slower (RFC 9438 4.3).
func TestShortRoundTrips(t *testing.T) {
	const mss, rtt = 1000, time.Millisecond
	var w Window
	var now time.Duration
	w.Init(mss)
	w.size = 100 * mss
	w.Lost(all)
	for range 40 {
		round(&w, mss, &now, rtt)
	}
	if got, want := w.size/mss, 70+40*pace; math.Abs(got-want) > 1 {
		t.Errorf("%.1f segments after 40 round trips, want %.1f", got, want)
	}
	for range 100 {
		round(&w, mss, &now, rtt)
	}
	if got := w.size / mss; got < 170 {
		t.Errorf("%.1f segments; past the old window it grows by one each round trip", got)
	}
}

func TestShrinks(t *testing.T) {
	const mss = 1000
	for _, c := range []struct {
		name            string
		do              func(w *Window)
		size, threshold int
	}{
		{"a loss", func(w *Window) { w.Lost(all) }, 70000, 70000},
		{"two losses: room for others", func(w *Window) { w.Lost(all); w.Lost(all) }, 49000, 49000},
		{"a timeout", func(w *Window) { w.Expired(all, false) }, 1000, 70000},
		{"a second one", func(w *Window) { w.Expired(all, false); w.Expired(all, true) }, 1000, 70000},
		{"a rest", func(w *Window) { w.Rested() }, 10000, math.MaxInt32},
		{"a loss of little", func(w *Window) { w.Lost(50 * mss) }, 35000, 35000},
		{"a timeout of little", func(w *Window) { w.Expired(50*mss, false) }, 1000, 35000},
		{"never below two segments", func(w *Window) { w.size = 1500; w.Lost(all) }, 2000, 2000},
	} {
		var w Window
		w.Init(mss)
		w.size = 100 * mss
		c.do(&w)
		if w.Size() != c.size || int(w.threshold) != c.threshold {
			t.Errorf("%s: %d, threshold %d; want %d, %d", c.name, w.Size(), int(w.threshold), c.size, c.threshold)
		}
	}
}

// One acknowledgement of much does not carry the window past the threshold: what lies beyond grows it slowly.
func TestSlowStartEndsAtThreshold(t *testing.T) {
	const mss = 1000
	var w Window
	w.Init(mss)
	w.size = 100 * mss
	w.Lost(all)
	w.Expired(all, true)
	w.size = 60 * mss // the threshold is 70
	w.Acked(60*mss, 0, time.Millisecond)
	if got := w.Size(); got < 70*mss || got > 72*mss {
		t.Errorf("%d after all of 60000 was acknowledged, want hardly more than 70000", got)
	}
}

// twin is a Board that has a bit for each byte after base.
type twin struct {
	base uint32
	has  [400]bool
}

func (w *twin) missing(at, end uint32) (first int, n int) {
	first = -1
	for i := at; i != end; i++ {
		if !w.has[i-w.base] {
			if n++; first < 0 {
				first = int(i - w.base)
			}
		}
	}
	return first, n
}

// Any order of blocks and acknowledgements leaves what a bit for each byte says, also where numbers begin anew.
func TestBoardAgainstBits(t *testing.T) {
	for range 3000 {
		w := &twin{base: rand.Uint32()}
		if rand.IntN(2) == 0 {
			w.base = -uint32(rand.IntN(400))
		}
		var b Board
		una := w.base
		for range 30 {
			at := una + uint32(rand.IntN(int(w.base+400-una)))
			end := min(at-w.base+uint32(rand.IntN(30)), 400) + w.base
			if rand.IntN(6) == 0 {
				una = at
				b.Ack(una)
			} else {
				b.Add(at, end)
				for i := at; i != end; i++ {
					w.has[i-w.base] = true
				}
			}
			to := w.base + 400
			if rand.IntN(2) == 0 {
				to = una + uint32(rand.IntN(int(to-una)+1))
			}
			first, n := w.missing(una, to)
			if got := b.Missing(una, to); got != uint32(n) {
				t.Fatalf("%d bytes are missing, want %d", got, n)
			}
			_, all := w.missing(una, w.base+400)
			if got := b.Arrived(); got != w.base+400-una-uint32(all) {
				t.Fatalf("%d bytes have arrived, want %d", got, w.base+400-una-uint32(all))
			}
			if from, k := b.Hole(una, to); k == 0 != (n == 0) || k > 0 && (from-w.base != uint32(first) || w.has[from+k-1-w.base]) {
				t.Fatalf("the first hole is %d bytes at %d, want one at %d", k, from-w.base, first)
			}
		}
	}
}

func TestLost(t *testing.T) {
	for _, c := range []struct {
		name   string
		blocks []span
		before uint32
		ok     bool
	}{
		{"nothing has arrived", nil, 0, false},
		{"two segments behind", []span{{100, 300}}, 0, false},
		{"three segments behind", []span{{100, 400}}, 100, true},
		{"three pieces behind", []span{{100, 110}, {120, 130}, {140, 150}}, 100, true},
		{"only what lies before them", []span{{100, 400}, {500, 600}}, 100, true},
		{"a late one is not", []span{{100, 400}, {500, 800}}, 500, true},
	} {
		var b Board
		for _, s := range c.blocks {
			b.Add(s.at, s.end)
		}
		if before, ok := b.Lost(100); before != c.before || ok != c.ok {
			t.Errorf("%s: %d, %v; want %d, %v", c.name, before, ok, c.before, c.ok)
		}
	}
}

// A receiver that reports more pieces than fit changes nothing but time.
func TestBoardIsBounded(t *testing.T) {
	var b Board
	for i := range uint32(1000) {
		b.Add(10*i+5, 10*i+10)
	}
	if got := b.Arrived(); got != 5*maxSpans {
		t.Errorf("%d bytes, want %d", got, 5*maxSpans)
	}
	b.Add(0, 10000)
	if got := b.Arrived(); got != 10000 || b.n != 1 {
		t.Errorf("%d bytes in %d pieces", got, b.n)
	}
}
