// Package underway counts what is under way, for those who wait until nothing is. A leaf.
package underway

import (
	"context"
	"sync"
)

// Count is how many things are under way. The zero value is ready for use, and must not be copied after that. Its
// methods may be called concurrently. Unlike a sync.WaitGroup, more may begin while somebody waits, and who waits may
// give up.
type Count struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed and forgotten when n becomes 0; nil while nobody waits
}

// Begin counts one thing until End is called for it.
func (c *Count) Begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

// End is called once for each Begin.
func (c *Count) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 && c.none != nil {
		close(c.none)
		c.none = nil
	}
}

// Now returns how much is under way.
func (c *Count) Now() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// Wait returns 0 as soon as nothing is under way, or how much is when ctx ends first. More may have begun when it
// returns.
func (c *Count) Wait(ctx context.Context) (left int) {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return 0
	}
	if c.none == nil {
		c.none = make(chan struct{})
	}
	none := c.none
	c.mu.Unlock()
	select {
	case <-none:
		return 0
	case <-ctx.Done():
		return c.Now()
	}
}
