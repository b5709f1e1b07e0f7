package refusal

import (
	"math/bits"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// buckets is how many rates are kept. Pods that share one by chance share its rate, and nobody else's.
	buckets = 256
	// interval and burst bound what one bucket lets through: 100 errors a second, 50 at once.
	interval = 10 * time.Millisecond
	burst    = 50
)

// Limit bounds the ICMP errors that are sent to each address (RFC 1812 4.3.2.8, RFC 4443 2.4 f), so that nobody who
// asks for many costs others theirs. It takes no lock and allocates nothing.
type Limit struct {
	now  func() time.Time // monotonic
	from time.Time
	seed uint64
	paid [buckets]atomic.Int64 // until when what was sent is paid for, in nanoseconds since from
}

// NewLimit makes a Limit. seed has no one know which addresses share a bucket.
func NewLimit(now func() time.Time, seed uint64) *Limit {
	// The clock begins with all buckets full.
	return &Limit{now: now, from: now().Add(-burst * interval), seed: seed}
}

// Allow reports whether an error may be sent to that address now.
func (l *Limit) Allow(to packet.Addr) bool {
	t := packet.Tuple{Src: to}
	hi, _ := bits.Mul64(t.Hash(l.seed), buckets)
	paid := &l.paid[hi]
	now := int64(l.now().Sub(l.from))
	for {
		was := paid.Load()
		next := max(was, now-int64(burst*interval)) + int64(interval)
		if next > now {
			return false
		}
		if paid.CompareAndSwap(was, next) {
			return true
		}
	}
}
