// Package pace keeps what an attachment is sent to a rate: what comes faster waits for a moment, and what is more than
// that is not taken.
package pace

import (
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/tap"
)

// Limit is a token bucket, with a backlog of what waits for it. Its methods are safe for concurrent use. All that the
// bucket remembers is one time: until when what was sent so far is paid for. That lies before now by what may be sent
// at once, at most by a full bucket's worth, and after now when the bucket is in debt. So it needs no lock and nobody
// who fills it.
type Limit struct {
	now   func() time.Time // monotonic
	start time.Time
	rate  float64       // bytes per nanosecond
	full  time.Duration // how long a full bucket lasts at that rate
	paid  atomic.Int64  // nanoseconds since start

	queue backlog
}

// leastFull is what a bucket lasts at least: timers come late by a millisecond, and what does not fit meanwhile is
// lost.
const leastFull = 20 * time.Millisecond

// New gives a full bucket; nil for a rate of 0, which is no limit. now is the clock, monotonic. write gets what has
// waited, one frame at a time; it is borrowed.
func New(r tap.Rate, now func() time.Time, write func(frame []byte)) *Limit {
	if r.Bits == 0 {
		return nil
	}
	l := &Limit{now: now, start: now(), rate: float64(r.Bits) / 8 / float64(time.Second)}
	l.full = max(leastFull, time.Duration(float64(r.BurstBytes())/l.rate))
	l.queue.write = write
	l.queue.ring.buf = make([]byte, min(max(leastQueue, uint64(l.rate*float64(queueTime))), mostQueue))
	l.paid.Store(int64(-l.full))
	return l
}

// take pays for n bytes and reports whether they may go. A superframe goes whole as soon as nothing is owed for those
// before, and leaves debts: so the rate is exact, however large it is beside the bucket. What goes on credit is only
// paid for: its sender waits by itself.
func (l *Limit) take(n int, credit bool) bool {
	now := int64(l.now().Sub(l.start))
	cost := int64(float64(n) / l.rate)
	for {
		was := l.paid.Load()
		if was > now && !credit {
			return false
		}
		if l.paid.CompareAndSwap(was, max(was, now-int64(l.full))+cost) {
			return true
		}
	}
}

// Wait is how long it takes until nothing is owed.
func (l *Limit) Wait() time.Duration {
	return max(0, time.Duration(l.paid.Load())-l.now().Sub(l.start))
}
