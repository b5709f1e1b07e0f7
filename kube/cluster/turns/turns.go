// Package turns lets requests through at a rate, few at a time, one owner after another. So an owner with thousands of
// requests delays a request of another owner by one, not by thousands, also where a server is slower than the rate.
package turns

import (
	"context"
	"sync"
	"time"

	"tapestry.dev/tapestry/share"
)

// Turns gives turns to owners. Make it with New.
type Turns struct {
	every time.Duration // between two turns
	ahead time.Duration // how far paid may be ahead of the clock: a burst's worth of turns
	most  int           // how many turns may be under way

	mu sync.Mutex
	// mu guards the rest.
	paid  time.Time                         // until when turns have been given out, at one for each interval
	line  share.Line[string, chan struct{}] // of requests; a channel is closed when it is the request's turn
	timer bool                              // a timer is going to call fire
	under int                               // how many turns are under way
}

// New returns Turns that give at most perSecond turns a second in the long run, and burst faster than that after a
// rest. At most most turns are under way at a time. All of them are at least 1.
func New(perSecond, burst, most int) *Turns {
	every := time.Second / time.Duration(perSecond)
	return &Turns{every: every, ahead: every * time.Duration(burst), most: most}
}

// Do calls request when it is the owner's turn, and returns its error. It returns another one when ctx is done before.
func (t *Turns) Do(ctx context.Context, owner string, request func() error) error {
	if err := t.wait(ctx, owner); err != nil {
		return err
	}
	defer t.end()
	return request()
}

func (t *Turns) wait(ctx context.Context, owner string) error {
	p := &share.Place[string, chan struct{}]{Value: make(chan struct{})}
	t.mu.Lock()
	t.line.Add(p, owner)
	t.serveLocked()
	t.mu.Unlock()
	select {
	case <-p.Value:
		return nil
	case <-ctx.Done():
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.line.Remove(p) {
			t.endLocked() // its turn came meanwhile
		}
		return ctx.Err()
	}
}

func (t *Turns) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.endLocked()
}

func (t *Turns) endLocked() {
	t.under--
	t.serveLocked()
}

// serveLocked gives the turns that are due, and sees to it that somebody gives the next one.
func (t *Turns) serveLocked() {
	for t.line.Len() > 0 && !t.timer && t.under < t.most {
		now := time.Now()
		if early := t.paid.Add(t.every - t.ahead).Sub(now); early > 0 {
			t.timer = true
			time.AfterFunc(early, t.fire)
			return
		}
		if t.paid.Before(now) {
			t.paid = now
		}
		t.paid = t.paid.Add(t.every)
		t.under++
		close(t.line.Next().Value)
	}
}

func (t *Turns) fire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer = false
	t.serveLocked()
}
