package pathmtu

import (
	"slices"
	"testing"
	"time"
)

// walk runs the discovery for the time lasts on a path that carries up to mtu bytes and answers after rtt. lose reports
// whether the n-th probe is lost. walk returns how many probes were sent.
func walk(d *Discovery, now *time.Time, lasts time.Duration, mtu func() int, rtt time.Duration, lose func(n int) bool) (probes int) {
	type flight struct {
		at   time.Time
		size int
	}
	var under []flight
	for end := now.Add(lasts); now.Before(end); *now = now.Add(10 * time.Millisecond) {
		for len(under) > 0 && !under[0].at.After(*now) {
			d.Answer(under[0].size, *now)
			under = under[1:]
		}
		for _, size := range d.Step(*now) {
			probes++
			if size <= mtu() && !lose(probes) {
				under = append(under, flight{now.Add(rtt), size})
			}
		}
	}
	return probes
}

func TestDiscovery(t *testing.T) {
	none := func(int) bool { return false }
	for _, c := range []struct {
		name                   string
		underlay, kernel, path int
		rtt                    time.Duration
		lose                   func(int) bool
		want                   int
		within                 time.Duration
	}{
		{"fits", 1500, 0, 1500, time.Millisecond, none, 1500, time.Second},
		{"black hole", 1500, 0, 1400, time.Millisecond, none, 1400, time.Second},
		{"between two steps", 1500, 0, 1450, time.Millisecond, none, 1440, time.Second},
		{"IPv6's least", 1500, 0, 1280, time.Millisecond, none, 1280, time.Second},
		{"smaller than IPv6's least", 1500, 0, 1210, time.Millisecond, none, 1200, time.Second},
		{"smallest", 1500, 0, 600, time.Millisecond, none, 576, time.Second},
		{"small underlay", 1300, 0, 1300, time.Millisecond, none, 1300, time.Second},
		{"jumbo", 9000, 0, 9000, time.Millisecond, none, 9000, time.Second},
		{"jumbo through a small path", 9000, 0, 1500, time.Millisecond, none, 1500, time.Second},
		{"slow path", 1500, 0, 1400, 180 * time.Millisecond, none, 1400, 3 * time.Second},
		{"one in three lost", 1500, 0, 1500, time.Millisecond, func(n int) bool { return n%3 == 1 }, 1500, 2 * time.Second},
		{"black hole and loss", 1500, 0, 1400, time.Millisecond, func(n int) bool { return n%5 == 0 }, 1400, 2 * time.Second},
		{"nobody answers", 1500, 0, 0, 0, none, 1500, 30 * time.Second},
		{"kernel knows", 1500, 1300, 1300, time.Millisecond, none, 1300, 10 * time.Millisecond},
		{"kernel knows half", 1500, 1400, 1320, time.Millisecond, none, 1320, time.Second},
		{"kernel knows too little", 1500, 1300, 1500, time.Millisecond, none, 1500, raiseEvery + time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Unix(1000, 0)
			d := New(c.underlay, now)
			if c.kernel != 0 {
				d.Told(c.kernel, now)
			}
			walk(d, &now, c.within, func() int { return c.path }, c.rtt, c.lose)
			if d.current != c.want {
				t.Errorf("path MTU %d after %v, want %d", d.current, c.within, c.want)
			}
		})
	}
}

func TestChanges(t *testing.T) {
	none := func(int) bool { return false }
	now := time.Unix(1000, 0)
	mtu := 1500
	path := func() int { return mtu }
	d := New(1500, now)
	walk(d, &now, 3*time.Second, path, time.Millisecond, none)

	mtu = 1400
	d.Suspect(true, now)
	walk(d, &now, time.Second, path, time.Millisecond, none)
	if d.current != 1400 {
		t.Fatalf("a silent path is at %d after a second, want 1400", d.current)
	}
	mtu = 1320
	walk(d, &now, verifyEvery+time.Second, path, time.Millisecond, none)
	if d.current != 1320 {
		t.Fatalf("an idle path is at %d, want 1320", d.current)
	}
	mtu = 1500
	walk(d, &now, raiseEvery+time.Second, path, time.Millisecond, none)
	if d.current != 1500 {
		t.Fatalf("a widened path is at %d after %v, want 1500", d.current, raiseEvery)
	}
	mtu = 1340
	d.Told(1340, now)
	mtu = 1450
	walk(d, &now, raiseEvery+time.Second, path, time.Millisecond, none)
	if d.current != 1440 {
		t.Fatalf("a path that became a little wider is at %d, want 1440", d.current)
	}
}

// A path that carries the small probe only is verified, not searched over and over, and rises as any other.
func TestRisesFromSmall(t *testing.T) {
	none := func(int) bool { return false }
	for _, large := range []bool{false, true} {
		now := time.Unix(1000, 0)
		mtu := 600
		path := func() int { return mtu }
		d := New(1500, now)
		run := func(lasts time.Duration) (probes int) {
			for end := now.Add(lasts); now.Before(end); {
				if large {
					d.Suspect(false, now)
				}
				probes += walk(d, &now, 100*time.Millisecond, path, time.Millisecond, none)
			}
			return probes
		}
		run(2 * time.Second)
		if d.current != Small {
			t.Fatalf("a path of 600 is at %d, want %d", d.current, Small)
		}
		if n := run(raiseEvery); n > 75 {
			t.Errorf("large packets: %v; %d probes in %v", large, n, raiseEvery)
		}
		mtu = 1500
		if run(raiseEvery + time.Second); d.current != 1500 {
			t.Errorf("large packets: %v; a path that became wider is at %d after %v, want 1500", large, d.current, raiseEvery)
		}
	}
}

// The kernel's word is believed when it is news, and never against a later probe: the kernel remembers for ten minutes
// what a router said.
func TestTold(t *testing.T) {
	none := func(int) bool { return false }
	now := time.Unix(1000, 0)
	mtu := 1500
	path := func() int { return mtu }
	told := func(d *Discovery, kernel int) {
		for range 60 {
			walk(d, &now, time.Second, path, time.Millisecond, none)
			d.Told(kernel, now)
		}
	}
	d := New(1500, now)
	if d.Told(1360, now); d.current != 1360 {
		t.Fatalf("the kernel's word is not taken: %d", d.current)
	}
	if told(d, 1360); d.current != 1500 {
		t.Fatalf("a good path is at %d after a minute in which the kernel remembers 1360, want 1500", d.current)
	}
	mtu = 1330 // another router
	if d.Told(1330, now); d.current != 1330 {
		t.Fatalf("the kernel's news are not taken: %d", d.current)
	}
	if told(d, 1330); d.current != 1330 {
		t.Fatalf("the path is at %d, want the kernel's 1330", d.current)
	}
	mtu = 1500
	d.Told(1500, now)
	if walk(d, &now, time.Second, path, time.Millisecond, none); d.current != 1500 {
		t.Fatalf("the kernel's better word is not tried at once: %d", d.current)
	}
	// Again as narrow as the kernel remembers: the search takes its word, which is between two steps.
	mtu = 1330
	d = New(1500, now)
	d.Told(1330, now)
	mtu = 1500
	told(d, 1330)
	mtu = 1330
	if walk(d, &now, verifyEvery+time.Second, path, time.Millisecond, none); d.current != 1330 {
		t.Fatalf("the path is at %d after a search, want 1330", d.current)
	}
}

// A path that is narrow for good costs a few probes a minute.
func TestRaisingIsCheap(t *testing.T) {
	now := time.Unix(1000, 0)
	d := New(9000, now)
	path := func() int { return 1320 }
	none := func(int) bool { return false }
	walk(d, &now, 5*time.Second, path, time.Millisecond, none)
	if n := walk(d, &now, time.Minute, path, time.Millisecond, none); n > 30 || d.current != 1320 {
		t.Errorf("%d probes in a minute, the path is at %d", n, d.current)
	}
}

// When nothing is wrong the discovery sends a few probes a minute.
func TestIsQuiet(t *testing.T) {
	now := time.Unix(1000, 0)
	d := New(1500, now)
	n := walk(d, &now, time.Minute, func() int { return 1500 }, time.Millisecond, func(int) bool { return false })
	if n > 16 {
		t.Errorf("%d probes in an idle minute", n)
	}
	n = 0
	for range 100 {
		d.Suspect(true, now)
		n += walk(d, &now, 10*time.Millisecond, func() int { return 0 }, time.Millisecond, func(int) bool { return false })
	}
	if n > 12 {
		t.Errorf("%d probes in a second to a peer that is away", n)
	}
}

// A late or invented answer must not raise anything.
func TestStrayAnswers(t *testing.T) {
	now := time.Unix(1000, 0)
	d := New(1500, now)
	d.Told(1400, now)
	d.Answer(9000, now)
	d.Step(now)
	d.Answer(9000, now)
	d.Answer(1500, now)
	walk(d, &now, time.Minute, func() int { return 1300 }, time.Millisecond, func(int) bool { return false })
	for _, size := range []int{1499, 9000, 1499} { // in the middle of a round, too
		d.Recheck(now)
		d.Step(now)
		d.Answer(size, now)
		d.Answer(Small, now)
		walk(d, &now, time.Second, func() int { return 1300 }, time.Millisecond, func(int) bool { return false })
	}
	if d.current != 1300 {
		t.Errorf("path MTU %d, want 1300", d.current)
	}
}

func TestSteps(t *testing.T) {
	if !slices.IsSortedFunc(steps[:], func(a, b int) int { return b - a }) {
		t.Error("steps are not sorted")
	}
	for _, s := range steps {
		if s%20 != 0 {
			t.Errorf("step %d is not a multiple of 20", s)
		}
	}
}

// A round that was under way when the path was left must not count as one without an answer when it is used again.
func TestResume(t *testing.T) {
	now := time.Unix(1000, 0)
	d := New(1500, now)
	never := func(int) bool { return true }
	walk(d, &now, 2*roundPause+10*time.Millisecond, func() int { return 1500 }, time.Millisecond, never)
	if !d.Active() {
		t.Fatal("no round is under way")
	}
	now = now.Add(time.Minute)
	d.Resume(now)
	if sizes := d.Step(now); len(sizes) == 0 || d.Silent() != 0 {
		t.Errorf("the path is used again: probes of %v, %d silent rounds, want probes and none", sizes, d.Silent())
	}
}
