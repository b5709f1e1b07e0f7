package share

import (
	"runtime"
	"sync"
)

// Rounds lets goroutines that have something to do go on by turns of their owners, a few of them in each round. A round
// is over when the goroutines that could run when it began have run, as far as Go's scheduler tells: nobody says when he
// is done, and whoever waits for something else meanwhile holds up nobody. Without it goroutines run in the order in
// which they became able to, and an owner with thousands of them delays another by all of these. Its methods are safe
// for concurrent use.
type Rounds[K comparable] struct {
	most int

	mu      sync.Mutex // guards what follows
	passed  int        // in this round
	running bool       // run is
	line    Line[K, chan struct{}]
}

// NewRounds returns Rounds in each of which so many pass, at least 1.
func NewRounds[K comparable](most int) *Rounds[K] { return &Rounds[K]{most: most} }

// Pass returns when it is the turn of the owner key: at once, unless as many as may had theirs in this round.
func (r *Rounds[K]) Pass(key K) {
	r.mu.Lock()
	if r.line.Len() == 0 && r.passed < r.most {
		r.passed++
		begin := r.passed == r.most && !r.running // up to there rounds need not be told apart
		r.running = r.running || begin
		r.mu.Unlock()
		if begin {
			go r.run()
		}
		return
	}
	turn := make(chan struct{}) // r is running, as somebody passed
	r.line.Add(&Place[K, chan struct{}]{Value: turn}, key)
	r.mu.Unlock()
	<-turn
}

// run makes rounds until nobody passed in one.
func (r *Rounds[K]) run() {
	for more := true; more; more = r.round() {
		runtime.Gosched() // those who could run before now do
	}
}

// round begins the next round, and reports whether there is one more after it.
func (r *Rounds[K]) round() (more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	more = r.passed > 0
	for r.passed = 0; r.passed < r.most; r.passed++ {
		next := r.line.Next()
		if next == nil {
			break
		}
		close(next.Value)
	}
	r.running = more || r.passed > 0
	return r.running
}
