package cluster

import (
	"context"
	"sync"
	"time"
)

// gate lets sources read while it is open. Its methods are safe for concurrent use. Make it with newGate: it is closed.
type gate struct {
	mu sync.Mutex
	// mu guards the rest.
	turn   context.Context // is done when the gate closes; nil while it is closed
	end    context.CancelFunc
	since  time.Time     // when it opened last
	start  time.Time     // when sources may begin after that
	opened chan struct{} // closed when it opens
}

func newGate() *gate { return &gate{opened: make(chan struct{})} }

// open opens the gate. Sources begin after a pause. It reports whether the gate was closed.
func (g *gate) open(pause time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.turn != nil {
		return false
	}
	g.turn, g.end = context.WithCancel(context.Background())
	g.since = time.Now()
	g.start = g.since.Add(pause)
	close(g.opened)
	return true
}

// close closes the gate.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.turn != nil {
		g.end()
		g.turn, g.opened = nil, make(chan struct{})
	}
}

// isOpen returns since when the gate is open, or false.
func (g *gate) isOpen() (since time.Time, open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.since, g.turn != nil
}

// enter waits until a source may begin. turn is done when it has to end. It returns false when ctx is done.
func (g *gate) enter(ctx context.Context) (turn context.Context, ok bool) {
	for {
		g.mu.Lock()
		opened, turn, start := g.opened, g.turn, g.start
		g.mu.Unlock()
		if turn == nil {
			select {
			case <-opened:
				continue
			case <-ctx.Done():
				return nil, false
			}
		}
		pause := time.NewTimer(time.Until(start))
		select {
		case <-pause.C:
			return turn, true
		case <-turn.Done():
			pause.Stop()
		case <-ctx.Done():
			pause.Stop()
			return nil, false
		}
	}
}
