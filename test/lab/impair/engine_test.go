package impair

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// decide sends n frames of size bytes, one every interval, and returns the verdicts.
func decide(c Config, d Direction, n, size int, interval time.Duration) []Verdict {
	e := NewEngine(c)
	var v []Verdict
	for i := range n {
		v = append(v, e.Decide(d, time.Duration(i)*interval, size))
	}
	return v
}

func TestSeed(t *testing.T) {
	c := Config{Loss: 0.2, Duplicate: 0.1, Reorder: 0.1, Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond, Rate: 10e6, Seed: 42}
	first := fmt.Sprint(decide(c, AToB, 1000, 1000, time.Millisecond))
	if again := fmt.Sprint(decide(c, AToB, 1000, 1000, time.Millisecond)); again != first {
		t.Error("the same seed decides differently")
	}
	if back := fmt.Sprint(decide(c, BToA, 1000, 1000, time.Millisecond)); back == first {
		t.Error("both directions decide alike")
	}
	c.Seed++
	if other := fmt.Sprint(decide(c, AToB, 1000, 1000, time.Millisecond)); other == first {
		t.Error("another seed decides alike")
	}
}

// A frame that is lost stays lost whatever else is switched on.
func TestIndependence(t *testing.T) {
	plain := decide(Config{Loss: 0.3, Seed: 7}, AToB, 1000, 100, time.Millisecond)
	full := decide(Config{Loss: 0.3, Duplicate: 0.5, Reorder: 0.5, Delay: time.Second, Jitter: time.Second, Seed: 7}, AToB, 1000, 100, time.Millisecond)
	for i := range plain {
		if (plain[i].Outcome == Lost) != (full[i].Outcome == Lost) {
			t.Fatalf("frame %d: %+v and %+v", i, plain[i], full[i])
		}
	}
}

func TestRatios(t *testing.T) {
	const n = 20000
	for _, p := range []float64{0, 0.01, 0.5, 1} {
		count := map[Outcome]int{}
		twice := 0
		for _, v := range decide(Config{Loss: p, Seed: 1}, AToB, n, 100, time.Millisecond) {
			count[v.Outcome]++
		}
		for _, v := range decide(Config{Duplicate: p, Reorder: p, Seed: 1}, AToB, n, 100, time.Millisecond) {
			count[v.Outcome]++
			twice += v.Copies - 1
		}
		// The bound is four standard deviations of a binomial distribution.
		bound := 4 * math.Sqrt(n*p*(1-p))
		for what, got := range map[string]int{"lost": count[Lost], "reordered": count[Reordered], "duplicated": twice} {
			if math.Abs(float64(got)-n*p) > bound {
				t.Errorf("%s %d of %d, want %v", what, got, n, n*p)
			}
		}
	}
}

func TestDelay(t *testing.T) {
	const delay, jitter, interval = 20 * time.Millisecond, 10 * time.Millisecond, time.Millisecond
	for _, j := range []time.Duration{0, jitter} {
		last, least, most := time.Duration(0), time.Hour, time.Duration(0)
		for i, v := range decide(Config{Delay: delay, Jitter: j, Seed: 3}, BToA, 1000, 100, interval) {
			took := v.At - time.Duration(i)*interval
			least, most = min(least, took), max(most, took)
			if v.At < last {
				t.Fatalf("frame %d overtakes", i)
			}
			last = v.At
		}
		if least < delay-j || most > delay+j {
			t.Errorf("jitter %v: delays from %v to %v", j, least, most)
		}
		if j > 0 && most-least < j {
			t.Errorf("jitter %v: delays only from %v to %v", j, least, most)
		}
	}
}

func TestReorder(t *testing.T) {
	verdicts := decide(Config{Reorder: 0.1, Delay: 3 * time.Millisecond, Seed: 5}, AToB, 1000, 100, time.Millisecond)
	overtaken := 0
	for i, v := range verdicts[:len(verdicts)-1] {
		if v.Outcome == Reordered && verdicts[i+1].Outcome == Passed {
			if verdicts[i+1].At >= v.At {
				t.Fatalf("frame %d was to be overtaken: %v, next %v", i, v.At, verdicts[i+1].At)
			}
			overtaken++
		}
	}
	if overtaken == 0 {
		t.Error("nothing was reordered")
	}
}

func TestRate(t *testing.T) {
	// 1 Mb/s carries a frame of 1250 bytes in 10 ms.
	const size, each = 1250, 10 * time.Millisecond
	for _, tc := range []struct {
		name     string
		interval time.Duration
		n        int
		dropped  bool
	}{{"below", 20 * time.Millisecond, 50, false}, {"burst", 0, 10, false}, {"above", 5 * time.Millisecond, 200, true}} {
		t.Run(tc.name, func(t *testing.T) {
			dropped, passed := 0, 0
			var last time.Duration
			for i, v := range decide(Config{Rate: 1e6}, AToB, tc.n, size, tc.interval) {
				if v.Outcome == Overflowed {
					dropped++
					continue
				}
				passed++
				sent := time.Duration(i) * tc.interval
				if v.At < sent+each || v.At > sent+QueueLimit+each {
					t.Fatalf("frame %d sent at %v arrives at %v", i, sent, v.At)
				}
				if v.At < last+each {
					t.Fatalf("frame %d arrives %v after the one before", i, v.At-last)
				}
				last = v.At
			}
			if (dropped > 0) != tc.dropped {
				t.Errorf("%d dropped", dropped)
			}
			if rate := float64(passed*size*8) / last.Seconds(); rate > 1.01e6 {
				t.Errorf("%v b/s", rate)
			}
		})
	}
}

func TestConfigCheck(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, ""},
		{Config{Loss: 1, Duplicate: 1, Reorder: 1, Delay: 2, Jitter: 2, Rate: 1, MTU: 68}, ""},
		{Config{Loss: 1.01}, "loss is 1.01, it must be from 0 to 1"},
		{Config{Duplicate: -0.1}, "duplicate is -0.1"},
		{Config{Reorder: math.NaN()}, "reorder is NaN"},
		{Config{Delay: -1}, "must not be negative"},
		{Config{Delay: 1, Jitter: 2}, "jitter is 2ns, it must not exceed the delay of 1ns"},
		{Config{Rate: -1}, "rate must not be negative"},
		{Config{MTU: 67}, "mtu is 67, it must be at least 68"},
	} {
		err := tc.cfg.check()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%+v: error %v, want %q", tc.cfg, err, tc.want)
		}
	}
}

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var got bytes.Buffer
		q := newQueue(func(frame []byte) {
			fmt.Fprintf(&got, "%s@%v ", frame, time.Since(start))
		})
		ended := make(chan struct{})
		go func() {
			q.run(start)
			close(ended)
		}()
		frame := []byte("a")
		q.push(30*time.Millisecond, frame)
		frame[0] = 'b' // the queue keeps a copy
		q.push(10*time.Millisecond, frame)
		q.push(10*time.Millisecond, []byte("c"))
		q.push(time.Hour, []byte("never"))
		time.Sleep(20 * time.Millisecond)
		q.push(0, []byte("late"))
		time.Sleep(time.Second)
		q.close()
		<-ended
		if want := "b@10ms c@10ms late@20ms a@30ms "; got.String() != want {
			t.Errorf("written %q, want %q", got.String(), want)
		}
		if q.push(0, frame) {
			t.Error("a closed queue takes frames")
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	q := newQueue(nil)
	frame := make([]byte, maxQueued/4+1)
	for i := range 4 {
		if ok := q.push(0, frame); ok != (i < 3) {
			t.Errorf("frame %d taken: %v", i, ok)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	e := NewEngine(Config{Loss: 0.01, Delay: time.Millisecond, Jitter: time.Millisecond, Rate: 1e9})
	b.ReportAllocs()
	var now time.Duration
	for b.Loop() {
		now += time.Microsecond
		e.Decide(AToB, now, 1500)
	}
}
