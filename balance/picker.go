package balance

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Source is what choices are made with. The zero Source has the process's monotonic clock and its random numbers.
type Source struct {
	// Clock returns the time since some moment.
	Clock func() time.Duration
	// Rand returns a random number.
	Rand func() uint64
}

var began = time.Now()

func (s *Source) now() time.Duration {
	if s.Clock == nil {
		return time.Since(began)
	}
	return s.Clock()
}

func (s *Source) rand() uint64 {
	if s.Rand == nil {
		return rand.Uint64()
	}
	return s.Rand()
}

// Now returns the time by the Source's clock.
func (s *Source) Now() time.Duration { return s.now() }

// Picker chooses one of a fixed number of servers. It may be used concurrently, and allocates nothing.
type Picker struct {
	source *Source
	method Method
	n      int
	loads  []*Load // by server, for methods that count
	turn   atomic.Uint64
}

// New returns a Picker among n servers, n >= 1. loads has the n servers' Loads, which the Picker keeps, and may be nil
// for a method that does not count. It returns nil for a method for which the caller chooses by a hash.
func (s *Source) New(m Method, n int, loads []*Load) *Picker {
	if m.Stateless() {
		return nil
	}
	p := &Picker{source: s, method: m, n: n, loads: loads}
	// The servers are in the same order everywhere, and each change makes a new Picker: the first would get more.
	p.turn.Store(s.rand() >> 1)
	return p
}

// Pick returns the index of a server.
func (p *Picker) Pick() int {
	if p.n == 1 {
		return 0
	}
	switch p.method {
	case RoundRobin:
		return int((p.turn.Add(1) - 1) % uint64(p.n))
	case LeastConnections:
		i, j := p.two()
		if a, b := p.loads[i], p.loads[j]; float64(b.Open()+1)*a.part(p.source) < float64(a.Open()+1)*b.part(p.source) {
			return j
		}
		return i
	case EWMA:
		i, j := p.two()
		if p.slower(p.loads[i], p.loads[j]) {
			return j
		}
		return i
	}
	return below(uint32(p.source.rand()>>32), p.n)
}

// slower reports whether a is to be expected to answer later than b. One whose time is not known is taken to be as
// quick as the other.
func (p *Picker) slower(a, b *Load) bool {
	now := p.source.now()
	ta, tb := a.time(now), b.time(now)
	switch {
	case ta == 0 && tb == 0:
		ta, tb = 1, 1
	case ta == 0:
		ta = tb
	case tb == 0:
		tb = ta
	}
	ta *= float64(a.Waiting() + 1)
	tb *= float64(b.Waiting() + 1)
	return tb*a.part(p.source) < ta*b.part(p.source)
}

// two returns two different indexes, at random.
func (p *Picker) two() (i, j int) {
	r := p.source.rand()
	i, j = below(uint32(r>>32), p.n), below(uint32(r), p.n-1)
	if j >= i {
		j++
	}
	return i, j
}

// below returns a number below n; r is random.
func below(r uint32, n int) int { return int(uint64(r) * uint64(n) >> 32) }
