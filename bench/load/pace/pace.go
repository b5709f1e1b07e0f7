/*
Package pace runs transactions, either one after the other or on a schedule, and records how long they take.

# Theory of operation

In a closed loop a stream begins a transaction when its last one has ended. A server that stalls also stalls the client,
which sends nothing meanwhile. One long wait then hides all the transactions that would have waited (coordinated
omission).

In an open loop transaction number k is due at start + k/rate, whatever comes back. The next free stream takes it and
sleeps until it is due. Its time counts from when it was due, not from when it was sent, so a stall shows in every
transaction that was due during the stall. The number of streams limits how many transactions are under way at once.
When all streams are busy, due transactions wait, and the wait counts. The client's own delay in waking up (tens of
microseconds) counts as well.
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

// ErrUnanswered is what a transaction returns, wrapped or not, when it gives up. Its time counts like any other, and
// its stream goes on.
var ErrUnanswered = errors.New("unanswered")

// How much longer a transaction that is under way when the time is up may take.
const (
	closedGrace = 10 * time.Second // after this the measurement fails
	openGrace   = time.Second      // after this the transaction counts as unanswered
)

// Loop is one measurement.
type Loop struct {
	// Cutoff is when every transaction must have ended or given up.
	Cutoff time.Time

	rate       int
	start, end time.Time
	next       atomic.Uint64 // transaction to be due
	clock      clock

	mu    sync.Mutex
	tally Tally
}

// Tally is the outcome of all streams' transactions.
type Tally struct {
	// Times are in nanoseconds, with three significant digits. A transaction without an answer counts with the time
	// that it waited.
	Times    *hdrhistogram.Histogram
	Answered uint64
	// Due counts the transactions that were to begin. It is more than Answered when some gave up, or did not begin for
	// lack of a free stream.
	Due uint64
}

// clock tells the time and makes timers. Tests have a clock of their own.
type clock struct {
	now      func() time.Time
	newTimer func() (waiter, error)
}

// waiter is a Timer.
type waiter interface {
	Wait(time.Duration) error
	Close() error
}

// Start begins a measurement that takes d from now on. rate is how many transactions per second all streams together
// begin; 0 means a closed loop.
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

// Tally returns the outcome. It is valid when every Stream has returned.
func (l *Loop) Tally() Tally { return l.tally }

// Stream does transactions one at a time until the time is up. Any number of Streams may run at once. Stream returns
// the first error of transact, except ErrUnanswered and, in an open loop, errors after the Cutoff.
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

// stream counts for itself, since histograms are not safe for concurrent use.
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
		if !now.Before(s.end) { // too late to begin: no stream was free after it was due
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
	// A few transactions may end after the Cutoff, which is the highest value of the histogram.
	_ = s.times.RecordValue(min(int64(d), s.times.HighestTrackableValue()))
}

// Offset returns when transaction number k is due at rate per second. It does not drift, and does not overflow within
// 2^64 transactions.
func Offset(k uint64, rate int) time.Duration {
	whole, part := k/uint64(rate), k%uint64(rate)
	return time.Duration(whole)*time.Second + time.Duration(part*uint64(time.Second)/uint64(rate))
}
