package recovery

import "time"

const (
	// firstTimeout applies until a round trip was measured (RFC 6298 2.1). minTimeout is TCP_RTO_MIN of Linux, where
	// the RFC says a second.
	firstTimeout = time.Second
	minTimeout   = 200 * time.Millisecond
	maxTimeout   = 20 * time.Second
)

// RTT estimates the round trip of a connection. The zero value has measured nothing yet.
type RTT struct {
	smoothed, variation time.Duration
}

// Sample takes the time from when a segment was sent to its acknowledgement. The segment was sent once (Karn's
// algorithm, RFC 6298 3).
func (r *RTT) Sample(d time.Duration) {
	d = max(d, time.Microsecond)
	if r.smoothed == 0 {
		r.smoothed, r.variation = d, d/2
		return
	}
	r.variation += ((r.smoothed - d).Abs() - r.variation) / 4
	r.smoothed += (d - r.smoothed) / 8
}

// Smoothed returns the estimate, 0 for none.
func (r *RTT) Smoothed() time.Duration { return r.smoothed }

// Timeout returns how long to wait for an acknowledgement.
func (r *RTT) Timeout() time.Duration {
	if r.smoothed == 0 {
		return firstTimeout
	}
	return min(max(r.smoothed+4*r.variation, minTimeout), maxTimeout)
}
