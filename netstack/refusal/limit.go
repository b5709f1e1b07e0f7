package refusal

import (
	"math/bits"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// buckets is the number of rates that are kept. Addresses that share a bucket by chance share one rate, and do not
	// affect other buckets.
	buckets = 256
	// interval and burst bound what one bucket allows: 100 errors a second, and 50 at once.
	interval = 10 * time.Millisecond
	burst    = 50
)

// Limit bounds the rate of ICMP errors to each address (RFC 1812 4.3.2.8, RFC 4443 2.4 f), so that an address that
// provokes many does not take those of others. It takes no lock and allocates nothing.
type Limit struct {
	now  func() time.Time // monotonic
	from time.Time
	seed uint64
	paid [buckets]atomic.Int64 // the time up to which the bucket is used up, in nanoseconds since from
}

// NewLimit makes a Limit. seed should be random, so that nobody knows which addresses share a bucket.
func NewLimit(now func() time.Time, seed uint64) *Limit {
	// from lies in the past by a whole burst, so all buckets begin full.
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
