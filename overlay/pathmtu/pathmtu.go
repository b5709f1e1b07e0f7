// Package pathmtu finds out, by probes, which size of packet a path carries. It follows RFC 8899: probes verify that
// the path carries the believed size, whether or not routers send ICMP messages (RFC 1191, RFC 8201), because some
// paths swallow large packets in silence. It is pure: a Discovery has no clock and sends nothing by itself.
//
//   - The believed size is verified every 10 s, every second while large packets flow, and at once when nothing comes
//     back for a quarter of a second.
//   - When three probes of the believed size are lost while a small probe is answered, all smaller steps are tried
//     together, and the largest answered one is taken.
//   - Every 30 s the largest size is tried and the next larger step. When only the step is answered, all sizes above it
//     are tried.
//   - What routers said by ICMP, as the kernel remembers it, is believed once: when it is news. The kernel remembers it
//     for 10 minutes (net.ipv4.route.mtu_expires), and by then the path may long be better.
//
// All sizes are those of the underlay's IP packets, in bytes.
package pathmtu

import (
	"math"
	"slices"
	"time"
)

const (
	// Small is the size of a probe that every path carries (RFC 1191). When it is answered and a larger one is not,
	// the larger one was lost because of its size.
	Small = 576

	roundSends  = 3                      // how often an unanswered probe is sent in a round
	roundPause  = 100 * time.Millisecond // the least time between two of these
	maxPause    = time.Second            // the longest
	verifyEvery = 10 * time.Second       // between two verifications of a path without large packets
	verifyBusy  = time.Second            // of a path with large packets
	raiseEvery  = 30 * time.Second
)

// steps lists the sizes that are tried, largest first: the MTUs of usual underlays, and what further tunnels leave
// of these. All are multiples of 20, the unit by which the mesh pads packets.
var steps = [...]int{
	9000, 8900, 8500, 8000, 7000, 6000, 5000, 4460, 4000, 3500, 3000, 2500, 2000, 1800, 1600,
	1500, 1480, 1460, 1440, 1420, 1400, 1380, 1360, 1340, 1320, 1300, 1280,
	1240, 1200, 1160, 1120, 1080, 1040, 1000, 900, 800, 700,
}

// round is a set of probes on their way.
type round uint8

const (
	noRound     round = iota
	verifyRound       // is the current size still carried?
	searchRound       // it is not: which is?
	raiseRound        // has the path become wider?
	climbRound        // it has: how wide is it?
)

// Discovery is the state of the discovery for one peer. It is for one goroutine at a time.
type Discovery struct {
	top     int // the largest size that the underlay carries
	current int // the believed size
	told    int // the kernel's size, when it was last asked

	round   round
	sizes   []int // probed in this round beside Small, largest first
	best    int   // largest answered in this round
	small   bool  // the small one was answered in this round
	sends   int
	sent    time.Time // the last sending
	next    time.Time // time of the next sending, or of the conclusion
	rtt     time.Duration
	verify  time.Time // when the next round of each kind is due
	raise   time.Time
	checked time.Time // end of the last round
	silent  int       // rounds in a row without any answer
}

// New returns a Discovery that begins with the underlay's MTU as the believed size, to be verified at once.
func New(underlay int, now time.Time) *Discovery {
	return &Discovery{top: underlay, current: underlay, told: underlay, verify: now, raise: now.Add(raiseEvery)}
}

// Told notes the path MTU that the kernel knows. When it has changed, a smaller one is believed at once, and a larger
// one has the path probed. While it stays the same it is old news, on which probes know better.
func (d *Discovery) Told(mtu int, now time.Time) {
	mtu = min(mtu, d.top)
	was := d.told
	d.told = mtu
	switch {
	case mtu == was:
	case mtu < d.current:
		d.current = max(mtu, Small)
		d.round = noRound
		d.verify, d.raise = now, now.Add(raiseEvery)
	case mtu > was:
		d.raise = now
	}
}

// Suspect is called while large packets go out; silent means that nothing comes back. It makes a verification due when
// the last round ended verifyBusy ago, or with silent already two roundPauses ago.
func (d *Discovery) Suspect(silent bool, now time.Time) {
	if d.round != noRound {
		return
	}
	since := now.Sub(d.checked)
	if since >= verifyBusy || silent && d.silent == 0 && since >= 2*roundPause {
		d.verify = now
	}
}

// Recheck makes a verification due at once, because there is a new session.
func (d *Discovery) Recheck(now time.Time) { d.verify, d.silent = now, 0 }

// Resume makes a verification due at once, because the path is used again after it was not for a while. A round that
// was under way then is forgotten.
func (d *Discovery) Resume(now time.Time) {
	d.round = noRound
	d.Recheck(now)
}

// Answer notes that a probe of the given size was answered.
func (d *Discovery) Answer(size int, now time.Time) {
	d.silent = 0
	if d.round == noRound {
		return
	}
	if size == Small {
		d.small = true
		d.rtt = now.Sub(d.sent)
	}
	if slices.Contains(d.sizes, size) {
		d.best = max(d.best, size)
	}
	if d.best == d.sizes[0] { // nothing better can come
		d.conclude(now)
	}
}

// Step returns the sizes to probe now. The slice is valid until the next call.
func (d *Discovery) Step(now time.Time) []int {
	if d.round == noRound {
		switch {
		case !now.Before(d.raise) && d.current < d.top:
			d.begin(raiseRound, now)
		case !now.Before(d.verify):
			d.begin(verifyRound, now)
		default:
			return nil
		}
	}
	if now.Before(d.next) {
		return nil
	}
	if d.sends == roundSends {
		d.conclude(now)
		if d.round == noRound {
			return nil
		}
	}
	d.sends++
	d.sent = now
	d.next = now.Add(min(maxPause, max(roundPause, 2*d.rtt)))
	// A size that was answered, and all smaller ones, need no further probe.
	n := 0
	for n < len(d.sizes) && d.sizes[n] > max(d.best, Small) {
		n++
	}
	if !d.small {
		return append(d.sizes[:n:n], Small)
	}
	return d.sizes[:n]
}

// Current returns the believed size.
func (d *Discovery) Current() int { return d.current }

// Silent returns how many rounds in a row ended without any answer.
func (d *Discovery) Silent() int { return d.silent }

// ForgetSilence sets Silent to 0.
func (d *Discovery) ForgetSilence() { d.silent = 0 }

// Active reports whether a round is under way.
func (d *Discovery) Active() bool { return d.round != noRound }

func (d *Discovery) begin(r round, now time.Time) {
	d.round, d.best, d.small, d.sends, d.next = r, 0, false, 0, now
	d.sizes = d.sizes[:0]
	switch r {
	case verifyRound:
		d.sizes = append(d.sizes, d.current)
	case raiseRound:
		d.sizes = append(d.sizes, d.top)
		if next := above(d.current); next < d.top {
			d.sizes = append(d.sizes, next)
		}
	case climbRound:
		d.sizes = d.ladder(d.sizes, d.top, d.current+1)
	case searchRound:
		d.sizes = d.ladder(d.sizes, d.current, Small+1)
	}
}

// above returns the smallest step above size, or a size that is larger than any.
func above(size int) int {
	for _, s := range slices.Backward(steps[:]) {
		if s > size {
			return s
		}
	}
	return math.MaxInt
}

// ladder appends hi, and below it down to lo the steps and the kernel's size.
func (d *Discovery) ladder(sizes []int, hi, lo int) []int {
	sizes = append(sizes, hi)
	for _, s := range steps {
		if d.told < sizes[len(sizes)-1] && d.told > s && d.told >= lo {
			sizes = append(sizes, d.told)
		}
		if s < hi && s >= lo {
			sizes = append(sizes, s)
		}
	}
	return sizes
}

// conclude ends the round, and sets the believed size by what was answered.
func (d *Discovery) conclude(now time.Time) {
	r := d.round
	d.round = noRound
	d.verify, d.checked = now.Add(verifyEvery), now
	if r == raiseRound || r == climbRound {
		d.raise = now.Add(raiseEvery)
	}
	switch {
	case d.best == 0 && !d.small: // the peer does not answer at all, which says nothing about sizes
		d.silent++
		return
	case r == verifyRound && d.best == 0:
		d.begin(searchRound, now)
		return
	case r == searchRound:
		d.current = max(d.best, Small)
		d.raise = now.Add(raiseEvery)
	case (r == raiseRound || r == climbRound) && d.best > d.current:
		d.current = d.best
		if r == raiseRound && d.current < d.top {
			d.begin(climbRound, now)
		}
	}
}
