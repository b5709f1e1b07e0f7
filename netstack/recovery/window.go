package recovery

import (
	"math"
	"time"
)

// The constants of CUBIC (RFC 9438 4.6, 4.1): what remains of the window after a loss, and how steep the curve is, in
// segments per cubic second.
const (
	beta  = 0.7
	curve = 0.4
	// pace is by how many segments a window grows in a round trip while it does what Reno would (RFC 9438 4.3).
	pace = 3 * (1 - beta) / (1 + beta)
)

// Window is a congestion window. Init comes before any other method.
type Window struct {
	mss       float64
	size      float64 // bytes
	threshold float64 // below it the window grows by all that is acknowledged (slow start)

	most  float64       // size when the last loss began (W_max)
	epoch time.Duration // when the growth since then began; valid if grows
	grows bool
	reno  float64       // what Reno's window would be (W_est)
	still time.Duration // after the epoch the curve is at most (K)
}

// initial returns the window of RFC 6928 2.
func initial(mss float64) float64 { return min(10*mss, max(2*mss, 14600)) }

// Init begins with the initial window for segments of mss bytes.
func (w *Window) Init(mss int) {
	*w = Window{mss: float64(mss), size: initial(float64(mss)), threshold: math.MaxInt32}
}

// SetMSS changes the length of segments, as when the path has changed. What may be on its way stays.
func (w *Window) SetMSS(mss int) { w.mss = float64(mss) }

// Size returns how many bytes may be on their way.
func (w *Window) Size() int { return int(w.size) }

// Acked grows the window for n bytes that were acknowledged, when the window was what kept the sender back and nothing
// is being repaired. rtt is the smoothed round trip.
func (w *Window) Acked(n int, now, rtt time.Duration) {
	bytes := float64(n)
	if slow := min(bytes, w.threshold-w.size); slow > 0 {
		w.size += slow
		if bytes -= slow; bytes == 0 {
			return
		}
	}
	if !w.grows {
		w.grows, w.epoch, w.reno = true, now, w.size
		w.most = max(w.most, w.size)
		w.still = time.Duration(math.Cbrt((w.most-w.size)/w.mss/curve) * float64(time.Second))
	}
	t := (now - w.epoch + rtt - w.still).Seconds()
	target := min(max(w.most+curve*t*t*t*w.mss, w.size), 1.5*w.size)
	grown := w.size + (target-w.size)*min(bytes/w.size, 1)
	step := w.mss
	if w.reno < w.most {
		step *= pace
	}
	w.reno += step * bytes / w.size
	w.size = max(grown, w.reno)
}

// Lost shrinks the window because segments were lost, when flight bytes were on their way. It is called once for all
// losses of a flight. What the window allowed and nobody sent proves nothing about the network (RFC 9438 4.6).
func (w *Window) Lost(flight int) {
	w.size = min(w.size, float64(flight))
	before := w.size
	w.shrink()
	if before < w.most { // somebody else needs room, too (RFC 9438 4.7)
		w.most = before * (1 + beta) / 2
	} else {
		w.most = before
	}
	w.size = w.threshold
}

// Expired shrinks the window to one segment because nothing of flight bytes was acknowledged in time. again says that
// this was so before anything new was acknowledged: then the loss was counted already.
func (w *Window) Expired(flight int, again bool) {
	if !again {
		w.size = min(w.size, float64(flight))
		w.shrink()
		w.most = w.threshold
	}
	w.size, w.grows = w.mss, false
}

func (w *Window) shrink() {
	w.threshold, w.grows = max(w.size*beta, 2*w.mss), false
}

// Rested is called when nothing was sent for longer than a timeout: what the network bears now is not known (RFC 5681
// 4.1).
func (w *Window) Rested() {
	w.size, w.grows = min(w.size, initial(w.mss)), false
}
