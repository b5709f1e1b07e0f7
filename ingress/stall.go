package ingress

import (
	"sync"
	"time"
)

// stall calls cut when the client was waited for, between begin and end, for limit without moving least bytes. What the
// Server or a backend takes does not count. The zero value never calls it.
type stall struct {
	limit time.Duration
	least int    // bytes; 0: any number, or none
	cut   func() // makes the read or write under way fail; called in a goroutine of its own, with mu held

	mu    sync.Mutex // guards below
	busy  bool
	since time.Time // when the present wait began; valid while busy
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
	s.busy, s.since = true, time.Now()
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
	s.spent += time.Since(s.since)
	if s.moved += n; s.moved >= s.least {
		s.spent, s.moved = 0, 0
	}
}

func (s *stall) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy {
		s.cut()
	}
}
