package health

import (
	"fmt"
	"sync"
	"time"
)

// stuckTime is how long it may take to bring the node to a snapshot of the cluster, as kube-proxy counts it.
const stuckTime = time.Minute

// Progress is how far the node is behind what it was told of the cluster. Its methods may be called concurrently.
type Progress struct {
	// Synced, if set, is told how long each snapshot took, and Programmed how long each change did. They are set before use.
	Synced     func(took time.Duration, err error)
	Programmed func(took time.Duration)

	mu      sync.Mutex
	since   time.Time // since when a snapshot is being applied; zero: none is
	updated time.Time // when one was applied last
	leaving bool      // the node is being deleted
}

// Begin tells that a snapshot is being applied, and gives what to call at the end: whether the node is being deleted, and what
// was not applied.
func (p *Progress) Begin() (end func(leaving bool, err error)) {
	start := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = start
	return func(leaving bool, err error) {
		p.mu.Lock()
		p.since, p.leaving = time.Time{}, leaving
		if err == nil {
			p.updated = time.Now()
		}
		p.mu.Unlock()
		if p.Synced != nil {
			p.Synced(time.Since(start), err)
		}
	}
}

// Triggered tells that what happened at these times is in force now.
func (p *Progress) Triggered(at []time.Time) {
	if p.Programmed == nil {
		return
	}
	for _, t := range at {
		p.Programmed(max(0, time.Since(t))) // by the clock of whoever saw it happen
	}
}

// Alive says since when the node is stuck with a snapshot, if it is.
func (p *Progress) Alive() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stuck := time.Since(p.since); !p.since.IsZero() && stuck > stuckTime {
		return fmt.Errorf("the cluster's state has not been applied for %s", stuck.Truncate(time.Second))
	}
	return nil
}

// Eligible is false while the node is being deleted.
func (p *Progress) Eligible() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.leaving
}

// Updated is when a snapshot was applied last; zero before the first.
func (p *Progress) Updated() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.updated
}
