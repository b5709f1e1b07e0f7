package turns

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// begin lets n requests of an owner wait, and calls done with the time that each waited.
func begin(t *testing.T, turns *Turns, owner string, n int, done func(time.Duration)) {
	began := time.Now()
	results := make(chan time.Duration)
	for range n {
		go func() {
			err := turns.Do(t.Context(), owner, func() error {
				results <- time.Since(began)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}()
	}
	synctest.Wait() // all of them are in line before whoever comes next
	go func() {
		for range n {
			done(<-results)
		}
	}()
}

// A rested Turns gives a burst at once, and one turn for each interval after that.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New(50, 100, 10)
		var waited []time.Duration
		begin(t, turns, "a", 200, func(d time.Duration) { waited = append(waited, d) })
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(waited) != 200 || waited[99] != 0 || waited[100] != 20*time.Millisecond || waited[199] != 2*time.Second {
			t.Errorf("%d turns; number 100 after %v, 101 after %v, 200 after %v", len(waited), waited[99], waited[100], waited[199])
		}
	})
}

// Whoever has one request waits for one turn of the others, however many those have.
func TestOwnersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New(10, 1, 10)
		for _, greedy := range []string{"a", "b"} {
			begin(t, turns, greedy, 5000, func(time.Duration) {})
		}
		var modest time.Duration
		begin(t, turns, "c", 1, func(d time.Duration) { modest = d })
		time.Sleep(time.Hour)
		synctest.Wait()
		if want := 300 * time.Millisecond; modest == 0 || modest > want {
			t.Errorf("it waited for %v, want at most %v", modest, want)
		}
		if turns.line.Len() != 0 {
			t.Errorf("%d requests are left", turns.line.Len())
		}
	})
}

// A request that nobody wants any more costs no turn.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New(1, 1, 1)
		if err := turns.Do(t.Context(), "a", func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error)
		for range 10 {
			go func() { errs <- turns.Do(ctx, "a", func() error { return nil }) }()
		}
		synctest.Wait()
		var waited time.Duration
		begin(t, turns, "a", 1, func(d time.Duration) { waited = d })
		cancel()
		for range 10 {
			if err := <-errs; err != context.Canceled {
				t.Errorf("got %v", err)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if waited != time.Second {
			t.Errorf("the next one waited for %v, want a second", waited)
		}
	})
}

// Where requests take long, only so many are under way, and the next owner's is sent when one of them has ended.
func TestUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New(1000, 1000, 3)
		under, most := 0, 0
		var mu sync.Mutex
		slow := func() error {
			mu.Lock()
			under++
			most = max(most, under)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			under--
			mu.Unlock()
			return io.EOF
		}
		began := time.Now()
		for range 300 {
			go func() {
				if err := turns.Do(t.Context(), "greedy", slow); err != io.EOF {
					t.Errorf("got %v", err)
				}
			}()
		}
		synctest.Wait()
		if err := turns.Do(t.Context(), "modest", func() error { return nil }); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("another owner waited for %v", d)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if most != 3 || under != 0 {
			t.Errorf("%d were under way at a time, want 3; %d are at the end", most, under)
		}
	})
}

// A turn that comes together with the end of its request is passed on.
func TestTurnOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New(1000, 1000, 1)
		release := make(chan struct{})
		go func() { _ = turns.Do(t.Context(), "a", func() error { <-release; return nil }) }()
		synctest.Wait()
		for range 100 {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { _ = turns.Do(ctx, "b", func() error { return nil }) }()
			synctest.Wait()
			go cancel()
		}
		close(release)
		synctest.Wait()
		if err := turns.Do(t.Context(), "c", func() error { return nil }); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if turns.under != 0 {
			t.Errorf("%d turns are under way at the end", turns.under)
		}
	})
}
