// Package pace limits the rate at which an attachment is sent packets: packets that come faster wait for a moment, and
// when too many wait, further ones are not accepted.
package pace

import (
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/tap"
)

// Limit is a token bucket with a backlog of waiting packets. Its methods are safe for concurrent use. The bucket is one
// time: until when the packets sent so far are paid for. Before now, it lies as far back as what may be sent at once,
// at most a full bucket's worth; after now, the bucket is in debt. So the bucket needs no lock, and nobody has to fill
// it.
type Limit struct {
	now   func() time.Time // monotonic
	start time.Time
	rate  float64       // bytes per nanosecond
	full  time.Duration // how long a full bucket lasts at this rate
	paid  atomic.Int64  // nanoseconds since start

	queue backlog
}

// leastFull is how long a full bucket lasts at least: timers fire up to a millisecond late, and packets that do not fit
// meanwhile are lost.
const leastFull = 20 * time.Millisecond

// New returns a Limit with a full bucket; nil for a rate of 0, which means no limit. now is the monotonic clock. write
// gets the packets that waited, one frame at a time; the frame is borrowed.
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

// take pays for n bytes and reports whether they may go. A superframe goes as a whole as soon as nothing is owed for
// earlier packets, and leaves a debt. So the rate is exact, however large a superframe is compared with the bucket. A
// packet on credit always goes: it is only paid for, since its sender waits by itself.
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

// Wait returns how long it takes until nothing is owed.
func (l *Limit) Wait() time.Duration {
	return max(0, time.Duration(l.paid.Load())-l.now().Sub(l.start))
}
