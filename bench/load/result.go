package load

import (
	"fmt"
	"strings"
	"time"

	"tapestry.dev/tapestry/bench/load/pace"
)

// Result is the result of one measurement.
type Result struct {
	Kind    string  `json:"kind"` // the command's name: stream, rr, ...
	Streams int     `json:"streams"`
	Seconds float64 `json:"seconds"` // as asked for
	// Bytes received, and the sum of the streams' rates; for udp, of payload. Only stream and udp have them.
	Direction     Direction `json:"direction,omitempty"`
	Bytes         uint64    `json:"bytes,omitempty"`
	BitsPerSecond float64   `json:"bits_per_second,omitempty"`
	// Transactions that were answered, and how long one took; for udp, packets received. stream does not have them.
	Transactions uint64   `json:"transactions,omitempty"`
	PerSecond    float64  `json:"per_second,omitempty"`
	Latency      *Latency `json:"latency_ns,omitempty"`
	// In an open loop, the rate asked for and how many transactions were due. Transactions without an answer (Due less
	// Transactions) are in Latency with the time that they waited.
	Rate int    `json:"rate,omitempty"`
	Due  uint64 `json:"due,omitempty"`
	// Sent counts the packets of udp. Lost counts packets that did not arrive (udp), or for which nothing came back in
	// time (udprr and dns).
	Sent uint64 `json:"sent,omitempty"`
	Lost uint64 `json:"lost,omitempty"`
	// Reordered counts packets of udp that came after a later one, Duplicates those that came again.
	Reordered  uint64 `json:"reordered,omitempty"`
	Duplicates uint64 `json:"duplicates,omitempty"`
}

// Latency has the quantiles in nanoseconds, with three significant digits.
type Latency struct {
	Min  int64   `json:"min"`
	Mean float64 `json:"mean"`
	P50  int64   `json:"p50"`
	P90  int64   `json:"p90"`
	P99  int64   `json:"p99"`
	P999 int64   `json:"p99.9"`
	Max  int64   `json:"max"`
}

// transactions makes the Result of a loop that has ended.
func transactions(kind string, o Options, t pace.Tally) (Result, error) {
	if t.Answered == 0 {
		return Result{}, fmt.Errorf("load: %s: not one transaction was answered", kind)
	}
	r := Result{
		Kind: kind, Streams: o.Streams, Seconds: o.Time.Seconds(), Rate: o.Rate,
		Transactions: t.Answered,
		PerSecond:    float64(t.Answered) / o.Time.Seconds(),
		Latency: &Latency{
			Min: t.Times.Min(), Mean: t.Times.Mean(), Max: t.Times.Max(),
			P50: t.Times.ValueAtQuantile(50), P90: t.Times.ValueAtQuantile(90),
			P99: t.Times.ValueAtQuantile(99), P999: t.Times.ValueAtQuantile(99.9),
		},
	}
	if o.Rate > 0 {
		r.Due = t.Due
	}
	return r, nil
}

// Loss returns the part of the sent packets that did not arrive, 0 to 1; udp only.
func (r Result) Loss() float64 {
	if r.Sent == 0 {
		return 0
	}
	return float64(r.Lost) / float64(r.Sent)
}

// String returns a line for people.
func (r Result) String() string {
	var b strings.Builder
	switch {
	case r.Latency != nil:
		us := func(ns int64) time.Duration { return time.Duration(ns).Round(100 * time.Nanosecond) }
		l := r.Latency
		fmt.Fprintf(&b, "%s: %.0f/s", r.Kind, r.PerSecond)
		if r.Rate > 0 {
			fmt.Fprintf(&b, " of %d/s", r.Rate)
		}
		fmt.Fprintf(&b, ", p50 %v p90 %v p99 %v p99.9 %v max %v", us(l.P50), us(l.P90), us(l.P99), us(l.P999), us(l.Max))
		if r.Due > r.Transactions {
			fmt.Fprintf(&b, ", %d of %d unanswered", r.Due-r.Transactions, r.Due)
		}
		if r.Lost > 0 {
			fmt.Fprintf(&b, ", %d lost", r.Lost)
		}
	case r.Sent > 0:
		fmt.Fprintf(&b, "%s: %.0f packets/s, %.3f Gbit/s, %.2f%% of %d lost, %d reordered, %d duplicates",
			r.Kind, r.PerSecond, r.BitsPerSecond/1e9, r.Loss()*100, r.Sent, r.Reordered, r.Duplicates)
	default:
		fmt.Fprintf(&b, "%s %s: %.3f Gbit/s, %d bytes in %gs", r.Kind, r.Direction, r.BitsPerSecond/1e9, r.Bytes, r.Seconds)
	}
	fmt.Fprintf(&b, ", %d streams", r.Streams)
	return b.String()
}
