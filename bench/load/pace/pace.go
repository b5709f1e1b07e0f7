/*
Package pace runs transactions, each when the one before has ended or on a schedule, and keeps how long they took.

# Theory of operation

In a closed loop a stream begins a transaction when its last one has ended. A server that stalls then stalls the client, too: it
is asked nothing meanwhile, so that one long wait stands for all that would have happened (coordinated omission).

In an open loop the k-th transaction is due at start + k/rate, whatever comes back. Whichever stream is free takes the next one,
sleeps until it is due, and its time counts from when it was due, not from when it could be sent. A stall therefore shows in
every transaction that was due in it. Streams bound how many are under way at once: when all are busy, what is due waits, and
the wait counts. How late the client itself wakes up (tens of microseconds) counts as well.
*/
package pace

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// ErrUnanswered is what a transaction returns, wrapped or not, that gave up. Its time counts like another's, and its
// stream goes on.
var ErrUnanswered = errors.New("unanswered")

// How long transactions that are under way when the time is up may still take.
const (
	closedGrace = 10 * time.Second // then the measurement fails
	openGrace   = time.Second      // then they are unanswered
)

// Loop is one measurement.
type Loop struct {
	// Cutoff is when a transaction must have given up.
	Cutoff time.Time

	rate       int
	start, end time.Time
	next       atomic.Uint64 // transaction to be due
	clock      clock

	mu    sync.Mutex
	tally Tally
}

// Tally is what became of all streams' transactions.
type Tally struct {
	// Times are in nanoseconds, with three significant digits. Those that were not answered count with what they had
	// waited.
	Times    *hdrhistogram.Histogram
	Answered uint64
	// Due were to be begun; more than were answered when some were given up, or not even begun for lack of a free
	// stream.
	Due uint64
}

// clock is the time, and timers that wait for it.
type clock struct {
	now      func() time.Time
	newTimer func() (waiter, error)
}

// waiter is a Timer.
type waiter interface {
	Wait(time.Duration) error
	Close() error
}

// Start begins a measurement that takes d from now on. rate is transactions per second over all streams; 0 is a closed
// loop.
func Start(d time.Duration, rate int) *Loop {
	return start(d, rate, clock{time.Now, func() (waiter, error) { return NewTimer() }})
}

func start(d time.Duration, rate int, c clock) *Loop {
	l := &Loop{rate: rate, start: c.now(), clock: c}
	l.end = l.start.Add(d)
	l.Cutoff = l.end.Add(closedGrace)
	if rate > 0 {
		l.Cutoff = l.end.Add(openGrace)
	}
	l.tally.Times = l.newTimes()
	return l
}

func (l *Loop) newTimes() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(l.Cutoff.Sub(l.start)), 3)
}

// Tally is valid when every Stream has returned.
func (l *Loop) Tally() Tally { return l.tally }

// Stream does transactions one at a time until the time is up. Any number of Streams may run at once. It returns the
// first error of transact, but for ErrUnanswered and, in an open loop, whatever a transaction fails with after the
// Cutoff.
func (l *Loop) Stream(ctx context.Context, transact func() error) error {
	s := stream{Loop: l, times: l.newTimes()}
	run := s.closed
	if l.rate > 0 {
		run = s.open
	}
	err := run(ctx, transact)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tally.Times.Merge(s.times)
	l.tally.Answered += s.answered
	l.tally.Due += s.due
	return err
}

// stream counts on its own: histograms are not safe for concurrent use.
type stream struct {
	*Loop
	times         *hdrhistogram.Histogram
	answered, due uint64
}

func (s *stream) closed(ctx context.Context, transact func() error) error {
	for t := s.start; t.Before(s.end) && ctx.Err() == nil; {
		err := transact()
		if err != nil && !errors.Is(err, ErrUnanswered) {
			return err
		}
		now := s.clock.now()
		s.record(now.Sub(t), err == nil)
		t = now
	}
	return ctx.Err()
}

func (s *stream) open(ctx context.Context, transact func() error) error {
	timer, err := s.clock.newTimer()
	if err != nil {
		return err
	}
	defer timer.Close()
	defer context.AfterFunc(ctx, func() { timer.Close() })()
	for ctx.Err() == nil {
		due := s.start.Add(Offset(s.next.Add(1)-1, s.rate))
		if !due.Before(s.end) {
			return nil
		}
		now := s.clock.now()
		if !now.Before(s.end) { // too late to begin: no stream was free in all the time since it was due
			s.record(now.Sub(due), false)
			continue
		}
		if wait := due.Sub(now); wait > 0 {
			if err := timer.Wait(wait); err != nil {
				return cmp.Or(ctx.Err(), err)
			}
		}
		err := transact()
		now = s.clock.now()
		if err != nil && !errors.Is(err, ErrUnanswered) && now.Before(s.Cutoff) {
			return err
		}
		s.record(now.Sub(due), err == nil)
	}
	return ctx.Err()
}

func (s *stream) record(d time.Duration, answered bool) {
	s.due++
	if answered {
		s.answered++
	}
	// A few transactions may end after the Cutoff; the histogram does not.
	_ = s.times.RecordValue(min(int64(d), s.times.HighestTrackableValue()))
}

// Offset is when the k-th of rate per second is due. It does not drift, and does not overflow within 2^64 transactions.
func Offset(k uint64, rate int) time.Duration {
	whole, part := k/uint64(rate), k%uint64(rate)
	return time.Duration(whole)*time.Second + time.Duration(part*uint64(time.Second)/uint64(rate))
}
