package share

import (
	"sync"
	"testing"
	"testing/synctest"
)

// TestRounds: an owner with thousands who wait delays another by one round.
func TestRounds(t *testing.T) {
	const many, most = 2000, 4
	synctest.Test(t, func(t *testing.T) {
		r := NewRounds[string](most)
		r.running = true // the test calls round
		var wg sync.WaitGroup
		var mu sync.Mutex
		passed := map[string]int{}
		pass := func(owner string) {
			wg.Go(func() {
				r.Pass(owner)
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
					r.Pass(owner % 7)
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

// A few who pass cost no goroutine.
func TestFewPassAtOnce(t *testing.T) {
	r := NewRounds[string](4)
	for range 3 {
		r.Pass("a")
	}
	if r.running {
		t.Error("rounds are told apart for three, of which four pass")
	}
}

func BenchmarkPass(b *testing.B) {
	r := NewRounds[string](4)
	b.ReportAllocs()
	for b.Loop() {
		r.Pass("a")
	}
}
