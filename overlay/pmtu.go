package overlay

import (
	"time"

	"tapestry.dev/tapestry/addressing"
)

// Path MTU discovery for one peer follows RFC 8899: probes verify that the path carries the believed size, whether or
// not routers send ICMP messages (RFC 1191, RFC 8201). All sizes are those of the underlay's IP packets, in bytes.

const (
	// minPath is the smallest path MTU that is searched for (RFC 8200 section 5).
	minPath = 1280
	// smallPath is the size of a probe that every path carries (RFC 1191). When it is answered and a larger one is not,
	// the larger one was lost because of its size.
	smallPath = 576

	roundSends  = 3                      // how often an unanswered probe is sent in a round
	roundPause  = 100 * time.Millisecond // the least time between two of these
	maxPause    = time.Second            // the longest
	verifyEvery = 10 * time.Second       // between two verifications of a path without large packets
	verifyBusy  = time.Second            // of a path with large packets
	raiseEvery  = time.Minute
)

// pathSteps lists the sizes that are tried, largest first: the MTUs of usual underlays, and what further tunnels leave
// of these. All are multiples of 20, see paddingUnit.
var pathSteps = [...]int{
	9000, 8900, 8500, 8000, 7000, 6000, 5000, 4460, 4000, 3500, 3000, 2500, 2000, 1800, 1600,
	1500, 1480, 1460, 1440, 1420, 1400, 1380, 1360, 1340, 1320, 1300, minPath,
}

// round is a set of probes on their way.
type round uint8

const (
	noRound     round = iota
	verifyRound       // is the current size still carried?
	searchRound       // it is not: which is?
	raiseRound        // has the path become wider?
)

// pathMTU is the state of the discovery for one peer. It has no clock and sends nothing by itself.
type pathMTU struct {
	top     int // the largest size that the underlay and the kernel allow
	current int // the believed size

	round   round
	sizes   []int // probed in this round, largest first, the small one last
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

// newPathMTU begins with the underlay's MTU as the believed size, to be verified at once.
func newPathMTU(underlay int, now time.Time) *pathMTU {
	return &pathMTU{top: underlay, current: underlay, verify: now, raise: now.Add(raiseEvery)}
}

// limit sets the kernel's path MTU. A smaller one is believed at once, a larger one is probed first.
func (p *pathMTU) limit(mtu int, now time.Time) {
	if mtu > p.top && p.current == p.top {
		p.raise = now
	}
	p.top = mtu
	if p.current > p.top {
		p.current = max(p.top, smallPath)
		p.round = noRound
	}
}

// suspect is called while large packets go out; silent means that nothing comes back. It makes a verification due when
// the last round ended verifyBusy ago, or with silent already two roundPauses ago.
func (p *pathMTU) suspect(silent bool, now time.Time) {
	if p.round != noRound {
		return
	}
	since := now.Sub(p.checked)
	if since >= verifyBusy || silent && p.silent == 0 && since >= 2*roundPause {
		p.verify = now
	}
}

// recheck makes a verification due at once, because there is a new session.
func (p *pathMTU) recheck(now time.Time) { p.verify, p.silent = now, 0 }

// answer notes that a probe of the given size was answered.
func (p *pathMTU) answer(size int, now time.Time) {
	p.silent = 0
	if p.round == noRound {
		return
	}
	if size == smallPath {
		p.small = true
		p.rtt = now.Sub(p.sent)
		return
	}
	if size <= p.top {
		p.best = max(p.best, size)
	}
	if p.best == p.sizes[0] { // nothing better can come
		p.conclude(now)
	}
}

// step returns the sizes to probe now. The slice is valid until the next call.
func (p *pathMTU) step(now time.Time) []int {
	if p.round == noRound {
		switch {
		case !now.Before(p.raise) && p.current < p.top:
			p.begin(raiseRound, now)
		case !now.Before(p.verify):
			p.begin(verifyRound, now)
		default:
			return nil
		}
	}
	if now.Before(p.next) {
		return nil
	}
	if p.sends == roundSends {
		p.conclude(now)
		if p.round == noRound {
			return nil
		}
	}
	p.sends++
	p.sent = now
	p.next = now.Add(min(maxPause, max(roundPause, 2*p.rtt)))
	// A size that was answered, and all smaller ones, need no further probe.
	n := 0
	for n < len(p.sizes) && p.sizes[n] > max(p.best, smallPath) {
		n++
	}
	if !p.small {
		return append(p.sizes[:n:n], smallPath)
	}
	return p.sizes[:n]
}

// active reports whether a round is under way.
func (p *pathMTU) active() bool { return p.round != noRound }

func (p *pathMTU) begin(r round, now time.Time) {
	p.round, p.best, p.small, p.sends, p.next = r, 0, false, 0, now
	p.sizes = p.sizes[:0]
	switch r {
	case verifyRound:
		p.sizes = append(p.sizes, p.current)
	case raiseRound:
		p.sizes = p.ladder(p.sizes, p.top, p.current+1)
	case searchRound:
		p.sizes = p.ladder(p.sizes, p.current, minPath)
	}
}

// ladder appends hi, and the steps below hi down to lo.
func (p *pathMTU) ladder(sizes []int, hi, lo int) []int {
	sizes = append(sizes, hi)
	for _, s := range pathSteps {
		if s < hi && s >= lo {
			sizes = append(sizes, s)
		}
	}
	return sizes
}

// conclude ends the round, and sets the believed size by what was answered.
func (p *pathMTU) conclude(now time.Time) {
	r := p.round
	p.round = noRound
	p.verify, p.checked = now.Add(verifyEvery), now
	if r == raiseRound {
		p.raise = now.Add(raiseEvery)
	}
	switch {
	case p.best == 0 && !p.small: // the peer does not answer at all, which says nothing about sizes
		p.silent++
		return
	case r == verifyRound && p.best == 0:
		p.begin(searchRound, now)
		return
	case r == searchRound:
		p.current = max(p.best, smallPath)
		p.raise = now.Add(raiseEvery)
	case r == raiseRound && p.best > p.current:
		p.current = p.best
	}
}

// innerMTU returns the size in bytes of the largest inner packet that, padded (see paddingUnit) and encrypted, fits
// into an underlay packet of path bytes.
func innerMTU(path int, v4 bool) int {
	room := path - addressing.Tunnel(!v4)
	if rest := room % paddingUnit; rest >= 16 {
		return room - rest + 16
	} else {
		return room - rest
	}
}
