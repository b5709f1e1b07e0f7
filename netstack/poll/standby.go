package poll

import (
	"sync"
	"sync/atomic"
	"time"
)

// standby has the loops for which nothing is ready. One at most sleeps at the epoll instance, and the others are
// parked until they are called. A frame that a handler writes to a TAP often brings the answer before the write
// returns. It is for the loop that is awake, and another one that slept at the epoll instance would be woken for it, on
// another processor and for nothing.
type standby struct {
	sleeping atomic.Bool // a loop sleeps at the epoll instance, or is about to

	mu     sync.Mutex // guards what follows
	parked []chan struct{}
}

// alone is how long a loop finds one event after the other, or handles one, before it calls another loop, if none
// sleeps.
const alone = time.Millisecond

// sleep reports whether the calling loop is the one to sleep at the epoll instance.
func (s *standby) sleep() bool { return s.sleeping.CompareAndSwap(false, true) }

// park waits until the calling loop is called by its channel, which has room for one call. It does not wait when no
// other loop sleeps: then nobody would notice the next event.
func (s *standby) park(called chan struct{}) {
	s.mu.Lock()
	if !s.sleeping.Load() {
		s.mu.Unlock()
		return
	}
	s.parked = append(s.parked, called)
	s.mu.Unlock()
	<-called
}

// call makes the loop go on that was parked last. It reports whether there was one. It does not block.
func (s *standby) call() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.parked)
	if n == 0 {
		return false
	}
	s.parked[n-1] <- struct{}{}
	s.parked = s.parked[:n-1]
	return true
}
