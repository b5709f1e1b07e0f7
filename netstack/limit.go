package netstack

import (
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// limit is a token bucket for what a Port is sent. All it remembers is one time: until when what was sent so far is paid for. That
// lies before now by what may be sent at once, at most by a full bucket's worth, and after now when the bucket is in debt. So it
// needs no lock and nobody who fills it.
type limit struct {
	now   func() time.Time // monotonic
	start time.Time
	rate  float64       // bytes per nanosecond
	full  time.Duration // how long a full bucket lasts at that rate
	paid  atomic.Int64  // nanoseconds since start

	queue backlog
}

// leastFull is what a bucket lasts at least: timers come late by a millisecond, and what does not fit meanwhile is lost.
const leastFull = 20 * time.Millisecond

// newLimit gives a full bucket; nil for a rate of 0, which is no limit.
func newLimit(r tap.Rate, now func() time.Time) *limit {
	if r.Bits == 0 {
		return nil
	}
	l := &limit{now: now, start: now(), rate: float64(r.Bits) / 8 / float64(time.Second)}
	l.full = max(leastFull, time.Duration(float64(r.BurstBytes())/l.rate))
	l.queue.ring.buf = make([]byte, min(max(leastQueue, uint64(l.rate*float64(queueTime))), mostQueue))
	l.paid.Store(int64(-l.full))
	return l
}

// take pays for n bytes and reports whether they may go. A superframe goes whole as soon as nothing is owed for those before, and leaves
// debts: so the rate is exact, however large it is beside the bucket. What goes on credit is only paid for: its sender waits by itself.
func (l *limit) take(n int, credit bool) bool {
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

// wait is how long it takes until nothing is owed.
func (l *limit) wait() time.Duration {
	return max(0, time.Duration(l.paid.Load())-l.now().Sub(l.start))
}

// pace tells a sender inside of the node, which can wait, whether a pod of this node is limited, and how long to wait now.
func (n *Node) pace(pod packet.Addr) (limited bool, wait time.Duration) {
	p := n.ports.table.Load().byAddr[pod]
	if p == nil || p.limit == nil {
		return false, 0
	}
	return true, p.limit.wait()
}
