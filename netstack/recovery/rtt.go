package recovery

import "time"

const (
	// firstTimeout applies until a round trip was measured (RFC 6298 2.1). minTimeout is TCP_RTO_MIN of Linux, where
	// the RFC says a second. maxTimeout is a third of what the RFC says: nodes are near each other.
	firstTimeout = time.Second
	minTimeout   = 200 * time.Millisecond
	maxTimeout   = 20 * time.Second
)

// RTT estimates the round trip of a connection. The zero value has measured nothing yet.
type RTT struct {
	smoothed, variation time.Duration
	backed              time.Duration // the least timeout until the next sample; 0 for none
}

// Sample takes the time from when a segment was sent to its acknowledgement. The segment was sent once (Karn's
// algorithm, RFC 6298 3).
func (r *RTT) Sample(d time.Duration) {
	d = max(d, time.Microsecond)
	r.backed = 0
	if r.smoothed == 0 {
		r.smoothed, r.variation = d, d/2
		return
	}
	r.variation += ((r.smoothed - d).Abs() - r.variation) / 4
	r.smoothed += (d - r.smoothed) / 8
}

// Smoothed returns the estimate, 0 for none.
func (r *RTT) Smoothed() time.Duration { return r.smoothed }

// Expired records that a timeout has passed. If the round trip has become longer, this timeout is too short to take a
// sample of anything that was sent once, so the next one is twice as long until there is one (RFC 6298 5.7). It is
// a second at most: where much is lost, samples are rare, and what is lost must not wait for long.
func (r *RTT) Expired() { r.backed = min(2*r.Timeout(), firstTimeout) }

// Timeout returns how long to wait for an acknowledgement. As in Linux, the least applies to the part of the variation:
// with a steady round trip that is longer, RFC 6298 alone would expect each acknowledgement at the last instant.
func (r *RTT) Timeout() time.Duration {
	if r.smoothed == 0 {
		return firstTimeout
	}
	return min(max(r.smoothed+max(4*r.variation, minTimeout), r.backed), maxTimeout)
}
