package tcprelay

import (
	"sync"
	"time"
)

// alarm is a timer that goes off at the earliest time it was set to.
type alarm struct {
	r  *Relay
	mu sync.Mutex
	at time.Duration // since r.start; 0: not set
	t  *time.Timer
	f  func()
}

func (a *alarm) init(r *Relay, f func()) { a.r, a.f = r, f }

// set makes f run after d, unless it is due earlier anyway.
func (a *alarm) set(d time.Duration) {
	at := a.r.now() + d
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at != 0 && a.at <= at {
		return
	}
	a.at = at
	if a.t == nil {
		a.t = time.AfterFunc(d, a.fire)
		return
	}
	a.t.Reset(d)
}

func (a *alarm) fire() {
	a.mu.Lock()
	a.at = 0
	a.mu.Unlock()
	a.f()
}

func (a *alarm) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = 1 // earlier than any other time, so that set does nothing
	if a.t != nil {
		a.t.Stop()
	}
}
