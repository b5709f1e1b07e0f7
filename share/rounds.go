package share

import (
	"runtime"
	"sync"
	"time"
)

const (
	// pace is how long a round may take before more pass in the next one. Goroutines that have nothing to do with
	// Rounds can make a round long: the goroutine that begins the next one then waits among theirs.
	pace = 200 * time.Microsecond
	// mostPaces bounds how many times as many pass after a long round. Those who pass make rounds long, too.
	mostPaces = 64
)

// Rounds lets goroutines that have something to do go on by turns of their owners, a few of them in each round. A
// round is over when the goroutines that could run when it began have run, as far as Go's scheduler tells: nobody says
// when he is done, and whoever waits for something else meanwhile holds up nobody. Without it goroutines run in the
// order in which they became able to, and an owner with thousands of them delays another by all of these. Its methods
// are safe for concurrent use.
type Rounds[K comparable] struct {
	most int

	mu      sync.Mutex // guards what follows
	passed  int        // in this round
	allowed int        // in this round
	began   time.Time  // when this round did; valid while running
	running bool       // run is
	line    Line[K, chan struct{}]
}

// NewRounds returns Rounds in each of which so many pass, at least 1, and more after a round that took long.
func NewRounds[K comparable](most int) *Rounds[K] { return &Rounds[K]{most: most, allowed: most} }

// Pass returns when it is the turn of the owner key: at once, unless as many as may had theirs in this round. It also
// returns when done is closed, and then nobody waits any more.
func (r *Rounds[K]) Pass(done <-chan struct{}, key K) {
	r.mu.Lock()
	if r.line.Len() == 0 && r.passed < r.allowed {
		r.passed++
		if r.passed == r.allowed && !r.running { // up to there rounds need not be told apart
			r.running, r.began = true, time.Now()
			go r.run()
		}
		r.mu.Unlock()
		return
	}
	place := &Place[K, chan struct{}]{Value: make(chan struct{})} // r is running, as somebody passed
	r.line.Add(place, key)
	r.mu.Unlock()
	select {
	case <-place.Value:
	case <-done:
		r.mu.Lock()
		defer r.mu.Unlock()
		r.line.Remove(place)
	}
}

// run makes rounds until nobody passed in one.
func (r *Rounds[K]) run() {
	for {
		runtime.Gosched() // those who could run before now do
		if !r.round() {
			return
		}
	}
}

// round begins the next round, and reports whether there is one more after it.
func (r *Rounds[K]) round() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.allowed, r.began = r.most*paces(now.Sub(r.began)), now
	more := r.passed > 0
	for r.passed = 0; r.passed < r.allowed; r.passed++ {
		next := r.line.Next()
		if next == nil {
			break
		}
		close(next.Value)
	}
	r.running = more || r.passed > 0
	if !r.running {
		r.allowed = r.most
	}
	return r.running
}

// paces returns how many times as many pass after a round that took so long.
func paces(took time.Duration) int { return int(min(max(took/pace, 1), mostPaces)) }
