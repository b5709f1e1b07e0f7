package balance

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// memory is the time after which a quicker answer, or no answer at all, has replaced 63 % of what was known.
	memory = 10 * time.Second
	// RefusedTime is what a refused connection counts as. It is longer than a server of a cluster takes, and shorter
	// than the first retransmission of a SYN, so that a silent server is worse.
	RefusedTime = 500 * time.Millisecond
	// slowStart is how long a server counts as new.
	slowStart = 30 * time.Second
	// leastPart is the part of a server that a server counts as when it comes.
	leastPart = 0.1
)

// Load is what is known of one server. Its methods may be called concurrently, and allocate nothing. The zero Load is
// of a server that has done nothing yet and is not new.
type Load struct {
	open, waiting atomic.Int64
	// average holds the average time to the first answer, a float32 of seconds in the upper half, and in the lower half
	// when it was that, in milliseconds of the Source's clock; the whole is 0 while there was no answer.
	average atomic.Uint64
	// since is when the server came, in nanoseconds of the Source's clock; 0 once it is not new any more.
	since atomic.Int64

	// Guarded by Loads.mu.
	holders int
}

// Begin counts a connection that waits for its first answer.
func (l *Load) Begin() { l.Add(1, 1) }

// End counts the end of a connection; answered says whether there was an answer.
func (l *Load) End(answered bool) {
	if answered {
		l.Add(-1, 0)
	} else {
		l.Add(-1, -1)
	}
}

// Answered records the first answer of a connection, which took this long.
func (l *Load) Answered(took, now time.Duration) {
	l.Add(0, -1)
	l.Observe(took, now)
}

// Refused records that the server refused a connection. The connection still has to be ended.
func (l *Load) Refused(now time.Duration) { l.Observe(RefusedTime, now) }

// Add changes the numbers of open connections, and of those among them that wait for their first answer.
func (l *Load) Add(open, waiting int64) {
	if open != 0 {
		l.open.Add(open)
	}
	if waiting != 0 {
		l.waiting.Add(waiting)
	}
}

// Open returns the number of open connections.
func (l *Load) Open() int64 { return max(0, l.open.Load()) }

// Waiting returns the number of open connections that wait for their first answer.
func (l *Load) Waiting() int64 { return max(0, l.waiting.Load()) }

// Come records that the server is new.
func (l *Load) Come(now time.Duration) { l.since.Store(max(1, int64(now))) }

// Time returns the average time to the first answer as of now, 0 if it is not known.
func (l *Load) Time(now time.Duration) time.Duration {
	return time.Duration(l.time(now) * float64(time.Second))
}

// Observe takes the time of a first answer into the average.
func (l *Load) Observe(took, now time.Duration) {
	for {
		old := l.average.Load()
		mean, at := unpack(old)
		t := took.Seconds()
		if old != 0 && t < mean {
			keep := math.Exp(-elapsed(at, now).Seconds() / memory.Seconds())
			t += (mean - t) * keep
		}
		if l.average.CompareAndSwap(old, pack(t, now)) {
			return
		}
	}
}

// time returns the average in seconds, smaller the longer nothing was heard; 0 if it is not known.
func (l *Load) time(now time.Duration) float64 {
	v := l.average.Load()
	if v == 0 {
		return 0
	}
	mean, at := unpack(v)
	return mean * math.Exp(-elapsed(at, now).Seconds()/memory.Seconds())
}

// part returns the part of a server that this one counts as.
func (l *Load) part(s *Source) float64 {
	since := l.since.Load()
	if since == 0 {
		return 1
	}
	age := s.now() - time.Duration(since)
	if age >= slowStart {
		l.since.CompareAndSwap(since, 0)
		return 1
	}
	return max(leastPart, float64(age)/float64(slowStart))
}

// leastTime keeps a packed average from being 0, which means unknown.
const leastTime = 1e-9

func pack(seconds float64, now time.Duration) uint64 {
	return uint64(math.Float32bits(float32(max(leastTime, seconds))))<<32 | uint64(uint32(now.Milliseconds()))
}

func unpack(v uint64) (seconds float64, at uint32) {
	return float64(math.Float32frombits(uint32(v >> 32))), uint32(v)
}

// elapsed returns the time since at, which is in milliseconds modulo 2^32, 49 days.
func elapsed(at uint32, now time.Duration) time.Duration {
	if d := int32(uint32(now.Milliseconds()) - at); d > 0 {
		return time.Duration(d) * time.Millisecond
	}
	return 0
}
