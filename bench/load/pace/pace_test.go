package pace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// virtual is a clock of a synctest bubble.
var virtual = clock{time.Now, func() (waiter, error) { return sleeper{}, nil }}

type sleeper struct{}

func (sleeper) Wait(d time.Duration) error { time.Sleep(d); return nil }
func (sleeper) Close() error               { return nil }

// atLeast counts the times that are d or longer.
func (t Tally) atLeast(d time.Duration) (n int64) {
	for _, bar := range t.Times.Distribution() {
		if bar.From >= int64(d) {
			n += bar.Count
		}
	}
	return n
}

// The server answers in 1 ms, except during one second in the middle, in which it stalls. In a closed loop the stall
// shows in one transaction among thousands. In an open loop it shows in every transaction that was due meanwhile.
func TestStallShowsInTheOpenLoop(t *testing.T) {
	measure := func(t *testing.T, rate int) Tally {
		l := start(3*time.Second, rate, virtual)
		stallFrom, stallTo := l.start.Add(time.Second), l.start.Add(2*time.Second)
		if err := l.Stream(t.Context(), func() error {
			if now := time.Now(); !now.Before(stallFrom) && now.Before(stallTo) {
				time.Sleep(stallTo.Sub(now))
			}
			time.Sleep(time.Millisecond)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return l.Tally()
	}
	synctest.Test(t, func(t *testing.T) {
		closed := measure(t, 0)
		if n := closed.atLeast(10 * time.Millisecond); n != 1 || closed.Answered < 1900 {
			t.Errorf("closed loop: %d of %d transactions show the stall, expected 1 of 2000", n, closed.Answered)
		}
		if p99 := time.Duration(closed.Times.ValueAtQuantile(99)); p99 > 2*time.Millisecond {
			t.Errorf("closed loop: p99 %v, expected it to hide the stall", p99)
		}
		open := measure(t, 500)
		if open.Due != 1500 || open.Answered != 1500 {
			t.Errorf("open loop: %d due, %d answered, expected 1500", open.Due, open.Answered)
		}
		// Transactions due in the stall wait for its end and for those before them, which take 1 ms each and are due
		// every 2 ms.
		if n := open.atLeast(500 * time.Millisecond); n < 500 || n > 505 {
			t.Errorf("open loop: %d transactions waited half of the stall, expected 500", n)
		}
		// Then the server catches up at twice the rate. In this second every transaction is late.
		if n := open.atLeast(2 * time.Millisecond); n < 950 || n > 1000 {
			t.Errorf("open loop: %d transactions were late, expected 1000", n)
		}
	})
}

// The server is asked for more than it can do. Transactions without an answer are counted, with their waiting time.
func TestOverloadShowsInTheOpenLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(time.Second, 1000, virtual)
		err := l.Stream(t.Context(), func() error { time.Sleep(10 * time.Millisecond); return nil })
		if err != nil {
			t.Fatal(err)
		}
		got := l.Tally()
		if got.Due != 1000 || got.Answered != 100 || got.Times.TotalCount() != 1000 {
			t.Errorf("%d due, %d answered, %d times; expected 1000, 100, 1000", got.Due, got.Answered, got.Times.TotalCount())
		}
		// Of the first 100 transactions, which were answered, the second half waited for 450 ms or more. Of the others,
		// those due before 550 ms did, since they waited to the end.
		if n := got.atLeast(450 * time.Millisecond); n < 495 || n > 505 {
			t.Errorf("%d waited for 450 ms, expected 500", n)
		}
	})
}

// Transactions that never end are cut off. In an open loop this is no error, since the stall is the result.
func TestStallToTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := errors.New("deadline")
		for _, rate := range []int{0, 100} {
			l := start(time.Second, rate, virtual)
			err := l.Stream(t.Context(), func() error { time.Sleep(time.Until(l.Cutoff)); return hang })
			if rate == 0 {
				if !errors.Is(err, hang) {
					t.Errorf("closed loop: got %v, want the transaction's error", err)
				}
				continue
			}
			got := l.Tally()
			if err != nil || got.Due != 100 || got.Answered != 0 || time.Duration(got.Times.Max()) < time.Second {
				t.Errorf("open loop: %v, %d due, %d answered, max %v", err, got.Due, got.Answered, time.Duration(got.Times.Max()))
			}
		}
	})
}

// Transactions of several streams share one schedule, and one that hangs does not hold up the others.
func TestStreamsShareTheSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(time.Second, 100, virtual)
		done := make(chan error)
		for i := range 4 {
			hung := false
			go func() {
				done <- l.Stream(t.Context(), func() error {
					if i == 0 && !hung {
						hung = true
						time.Sleep(500 * time.Millisecond)
					}
					return nil
				})
			}()
		}
		for range 4 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if got := l.Tally(); got.Due != 100 || got.Answered != 100 || got.atLeast(time.Millisecond) != 1 {
			t.Errorf("%d due, %d answered, %d late; expected 100, 100, 1", got.Due, got.Answered, got.atLeast(time.Millisecond))
		}
	})
}

func TestUnansweredGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rate := range []int{0, 100} {
			l, n := start(time.Second, rate, virtual), 0
			err := l.Stream(t.Context(), func() error {
				time.Sleep(10 * time.Millisecond)
				if n++; n%2 == 0 {
					return fmt.Errorf("lost: %w", ErrUnanswered)
				}
				return nil
			})
			if got := l.Tally(); err != nil || got.Answered != 50 || got.Due != 100 {
				t.Errorf("rate %d: %v, %d of %d answered, expected 50 of 100", rate, err, got.Answered, got.Due)
			}
		}
	})
}

func TestErrorsAndCancel(t *testing.T) {
	defer goleak.VerifyNone(t)
	broken := errors.New("broken")
	for _, rate := range []int{0, 1, 1000} {
		if err := Start(time.Hour, rate).Stream(t.Context(), func() error { return broken }); !errors.Is(err, broken) {
			t.Errorf("rate %d: got %v, want the transaction's error", rate, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if err := Start(time.Hour, rate).Stream(ctx, func() error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("rate %d: got %v, want the context's error", rate, err)
		}
	}
}

func TestOffset(t *testing.T) {
	for _, tt := range []struct {
		k    uint64
		rate int
		want time.Duration
	}{
		{0, 1, 0}, {1, 1, time.Second}, {1, 3, 333333333}, {3, 3, time.Second}, {3_600_000_001, 1_000_000, time.Hour + time.Microsecond},
		{36_000_000_000, 10_000_000, time.Hour},
	} {
		if got := Offset(tt.k, tt.rate); got != tt.want {
			t.Errorf("%d at %d/s: got %v, want %v", tt.k, tt.rate, got, tt.want)
		}
	}
}

func TestTimer(t *testing.T) {
	timer, err := NewTimer()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []time.Duration{-1, 0, 1, time.Millisecond, 20 * time.Millisecond} {
		begun := time.Now()
		if err := timer.Wait(d); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < d {
			t.Errorf("waited %v, expected at least %v", took, d)
		}
	}
	time.AfterFunc(time.Millisecond, func() { timer.Close() })
	if err := timer.Wait(time.Hour); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want %v", err, os.ErrClosed)
	}
}
