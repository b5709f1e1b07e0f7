package ingress

import (
	"sync"
	"time"
)

// stall calls cut when the client was waited for, between begin and end, for limit without moving least bytes. What the
// Server or a backend takes does not count, nor the client's turns. The zero value never calls it.
type stall struct {
	limit time.Duration
	least int    // bytes; 0: any number, or none
	turns *turns // of the connection; nil: none
	cut   func() // makes the read or write under way fail; called in a goroutine of its own, with mu held

	mu    sync.Mutex // guards below
	busy  bool
	since time.Time     // when the present wait began; valid while busy
	taken time.Duration // by turns, when it began
	spent time.Duration
	moved int // bytes, within spent
	timer *time.Timer
}

func (s *stall) begin() {
	if s.cut == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy, s.since, s.taken = true, time.Now(), s.turns.total()
	if s.timer == nil {
		s.timer = time.AfterFunc(s.limit, s.expire)
		return
	}
	s.timer.Reset(s.limit - s.spent)
}

// end says that n bytes have moved since begin.
func (s *stall) end(n int) {
	if s.cut == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	s.timer.Stop()
	s.spent += s.waited()
	if s.moved += n; s.moved >= s.least {
		s.spent, s.moved = 0, 0
	}
}

func (s *stall) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.busy {
		return
	}
	if left := s.limit - s.spent - s.waited(); left > 0 {
		s.timer.Reset(left)
		return
	}
	s.cut()
}

// waited returns how long the client has been waited for since begin.
func (s *stall) waited() time.Duration { return time.Since(s.since) - (s.turns.total() - s.taken) }

// turns measures how long a connection waited for its client's turns, which is not the client's fault.
type turns struct {
	mu    sync.Mutex // guards below
	since time.Time  // when the present wait began; zero: there is none
	spent time.Duration
}

func (t *turns) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since = time.Now()
}

func (t *turns) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spent, t.since = t.spent+time.Since(t.since), time.Time{}
}

// total returns how long all waits took until now. That of nil is 0.
func (t *turns) total() time.Duration {
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.IsZero() {
		return t.spent
	}
	return t.spent + time.Since(t.since)
}
