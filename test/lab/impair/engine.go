package impair

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"tapestry.dev/tapestry/addressing"
)

// Config says how bad the path is, in each direction. The zero value is a good path.
type Config struct {
	// Loss, Duplicate and Reorder are parts of the frames, 0 to 1: those that are lost, those that arrive twice, and
	// those that are held back for HoldBack so that others overtake them.
	Loss, Duplicate, Reorder float64
	// Delay is added to every frame. Jitter varies the delay by up to its own amount in both directions. Jitter alone
	// keeps the order.
	Delay, Jitter time.Duration
	// Rate is in bits per second of Ethernet frames; 0 means no limit. A frame that would wait longer than QueueLimit
	// is dropped.
	Rate int64
	// MTU is the largest IP packet in bytes; 0 means no limit. Larger packets are dropped when they have DF or are
	// IPv6. Others are fragmented, as a router does.
	MTU int
	// ICMP answers packets that MTU drops with "fragmentation needed" or "packet too big", sent from the packet's
	// destination. Without ICMP the path is a black hole.
	ICMP bool
	// Family is 4 or 6 when only packets of that IP version are impaired, 0 when all frames are.
	Family int
	// Seed makes a run repeatable: equal seeds make equal decisions.
	Seed uint64
}

// Times the engine works with.
const (
	HoldBack   = 5 * time.Millisecond
	QueueLimit = 100 * time.Millisecond
)

// check returns an error for the first setting that makes no sense.
func (c *Config) check() error {
	for _, p := range []struct {
		name  string
		value float64
	}{{"loss", c.Loss}, {"duplicate", c.Duplicate}, {"reorder", c.Reorder}} {
		if !(p.value >= 0 && p.value <= 1) {
			return fmt.Errorf("%s is %v, it must be from 0 to 1", p.name, p.value)
		}
	}
	switch {
	case c.Delay < 0 || c.Jitter < 0:
		return errors.New("delay and jitter must not be negative")
	case c.Jitter > c.Delay:
		return fmt.Errorf("jitter is %v, it must not exceed the delay of %v", c.Jitter, c.Delay)
	case c.Rate < 0:
		return errors.New("the rate must not be negative")
	case c.Family != 0 && c.Family != 4 && c.Family != 6:
		return fmt.Errorf("the family is %d, it must be 4 or 6, or 0 for both", c.Family)
	case c.MTU != 0 && c.MTU < addressing.MinMTU4:
		return fmt.Errorf("the mtu is %d, it must be at least %d", c.MTU, addressing.MinMTU4)
	}
	return nil
}

// Direction is one of the two ways between the nodes.
type Direction uint8

// The directions.
const (
	AToB Direction = iota
	BToA
)

// Verdict is what becomes of a frame.
type Verdict struct {
	Outcome Outcome
	// Copies is how many copies arrive, At is when. At is a time on the clock given to Decide.
	Copies int
	At     time.Duration
}

// Outcome names what happened to a frame.
type Outcome uint8

// The outcomes.
const (
	Passed Outcome = iota
	Reordered
	Lost
	Overflowed // it would wait longer than QueueLimit for the rate limit
)

// Engine decides about frames. One goroutine per direction may use it at a time.
type Engine struct {
	cfg   Config
	lanes [2]lane
}

type lane struct {
	rand *rand.Rand
	free time.Duration // when the wire has sent everything it was given
	last time.Duration // when the last frame arrives that kept the order
}

// NewEngine makes an Engine at the beginning of its random numbers.
func NewEngine(c Config) *Engine {
	e := &Engine{cfg: c}
	for d := range e.lanes {
		e.lanes[d].rand = rand.New(rand.NewPCG(c.Seed, uint64(d)))
	}
	return e
}

// Decide returns what becomes of a frame of size bytes that is sent at now. now must not decrease.
func (e *Engine) Decide(d Direction, now time.Duration, size int) Verdict {
	c, l := &e.cfg, &e.lanes[d]
	// Every frame draws the same numbers, so that no setting changes the effect of another one.
	loss, duplicate, reorder, jitter := l.rand.Float64(), l.rand.Float64(), l.rand.Float64(), l.rand.Float64()
	if loss < c.Loss {
		return Verdict{Outcome: Lost}
	}
	at := now
	if c.Rate > 0 {
		if l.free-now > QueueLimit {
			return Verdict{Outcome: Overflowed}
		}
		at = max(now, l.free) + time.Duration(float64(size)*8/float64(c.Rate)*float64(time.Second))
		l.free = at
	}
	at += c.Delay + time.Duration((2*jitter-1)*float64(c.Jitter))
	v := Verdict{Copies: 1}
	if duplicate < c.Duplicate {
		v.Copies = 2
	}
	if reorder < c.Reorder {
		v.Outcome, v.At = Reordered, max(at, l.last)+HoldBack
		return v
	}
	l.last = max(at, l.last)
	v.At = l.last
	return v
}
