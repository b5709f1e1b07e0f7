package share

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestRounds: an owner with thousands who wait delays another by one round.
func TestRounds(t *testing.T) {
	const many, most = 2000, 4
	synctest.Test(t, func(t *testing.T) {
		r := NewRounds[string](most)
		r.running, r.began = true, time.Now() // the test calls round
		var wg sync.WaitGroup
		var mu sync.Mutex
		passed := map[string]int{}
		pass := func(owner string) {
			wg.Go(func() {
				r.Pass(nil, owner)
				mu.Lock()
				defer mu.Unlock()
				passed[owner]++
			})
		}
		for range many {
			pass("greedy")
		}
		synctest.Wait()
		if passed["greedy"] != most {
			t.Errorf("%d passed in the first round, want %d", passed["greedy"], most)
		}
		for i := range 10 {
			pass("modest")
			synctest.Wait()
			if !r.round() {
				t.Fatal("no more rounds, and many wait")
			}
			synctest.Wait()
			if passed["modest"] != i+1 {
				t.Fatalf("after round %d, %d of the modest owner passed", i+1, passed["modest"])
			}
			if want := most + (i+1)*(most-1); passed["greedy"] != want {
				t.Errorf("after round %d, %d of the greedy owner passed, want %d", i+1, passed["greedy"], want)
			}
		}
		r.run()
		wg.Wait()
		if passed["greedy"] != many || passed["modest"] != 10 || r.running || r.passed != 0 {
			t.Errorf("in the end %v passed; running is %v, and %d passed in the round", passed, r.running, r.passed)
		}
	})
}

// TestRoundsEnd: whoever asks passes in the end, and then nothing runs on.
func TestRoundsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRounds[int](3)
		var wg sync.WaitGroup
		for owner := range 100 {
			wg.Go(func() {
				for range 50 {
					r.Pass(nil, owner%7)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if r.running || r.line.Len() != 0 {
			t.Errorf("running is %v, and %d wait", r.running, r.line.Len())
		}
	})
}

// TestRoundsAreLeft: whoever does not wait any longer leaves the line, and takes no turn of those who do.
func TestRoundsAreLeft(t *testing.T) {
	const many, most = 1000, 4
	synctest.Test(t, func(t *testing.T) {
		r := NewRounds[string](most)
		r.running, r.began, r.passed = true, time.Now(), most // the test calls round
		var returned, modest atomic.Int32
		done := make(chan struct{})
		for range many {
			go func() { r.Pass(done, "greedy"); returned.Add(1) }()
		}
		go func() { r.Pass(nil, "modest"); modest.Add(1) }()
		synctest.Wait()
		if n := r.line.Len(); n != many+1 || returned.Load() != 0 {
			t.Fatalf("%d wait, and %d do not; want all", n, returned.Load())
		}
		close(done)
		synctest.Wait()
		if n := r.line.Len(); n != 1 || returned.Load() != many || modest.Load() != 0 {
			t.Errorf("%d wait, want 1; %d do not, want %d", n, returned.Load(), many)
		}
		r.round()
		synctest.Wait()
		if modest.Load() != 1 || r.passed != 1 {
			t.Errorf("the one who waits did not pass; %d did", r.passed)
		}
	})
}

// TestLongRounds: more pass after a round that took long, as many as keeps a pace, up to a bound.
func TestLongRounds(t *testing.T) {
	const most = 4
	synctest.Test(t, func(t *testing.T) {
		r := NewRounds[string](most)
		r.running, r.began, r.passed = true, time.Now(), most // the test calls round
		done := make(chan struct{})
		for range 1000 {
			go r.Pass(done, "a")
		}
		for _, tt := range []struct {
			took time.Duration
			want int
		}{{0, most}, {pace, most}, {2 * pace, 2 * most}, {1500 * time.Microsecond, 7 * most}, {time.Minute, mostPaces * most}, {0, most}} {
			synctest.Wait()
			time.Sleep(tt.took)
			if r.round(); r.passed != tt.want {
				t.Errorf("after a round of %v %d passed, want %d", tt.took, r.passed, tt.want)
			}
		}
		close(done)
		synctest.Wait()
		time.Sleep(time.Second)
		for r.round() {
		}
		if r.allowed != most {
			t.Errorf("in the end %d pass at once, want %d", r.allowed, most)
		}
	})
}

// A few who pass cost no goroutine.
func TestFewPassAtOnce(t *testing.T) {
	r := NewRounds[string](4)
	for range 3 {
		r.Pass(nil, "a")
	}
	if r.running {
		t.Error("rounds are told apart for three, of which four pass")
	}
}

func BenchmarkPass(b *testing.B) {
	r := NewRounds[string](4)
	b.ReportAllocs()
	for b.Loop() {
		r.Pass(nil, "a")
	}
}
