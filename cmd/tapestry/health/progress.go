package health

import (
	"fmt"
	"sync"
	"time"

	"tapestry.dev/tapestry/counter"
)

// stuckTime is how long it may take to bring the node to a snapshot of the cluster, as kube-proxy counts it.
const stuckTime = time.Minute

// Progress is how far the node is behind what it was told of the cluster. Make it with NewProgress. Its methods may be
// called concurrently.
type Progress struct {
	synced, programmed *counter.Histogram // in seconds

	mu      sync.Mutex
	since   time.Time // since when a snapshot is being applied; zero: none is
	updated time.Time // when one was applied last
	failed  uint64    // how many were not applied whole
	leaving bool      // the node is being deleted
}

// NewProgress gives one of a node that was told nothing yet.
func NewProgress() *Progress {
	const first, bounds = 0.001, 15 // 1 ms to 16 s
	return &Progress{synced: counter.NewHistogram(first, bounds), programmed: counter.NewHistogram(first, bounds)}
}

// Begin tells that a snapshot is being applied, and gives what to call at the end: whether the node is being deleted,
// and what was not applied.
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
		} else {
			p.failed++
		}
		p.mu.Unlock()
		p.synced.Observe(time.Since(start).Seconds())
	}
}

// Triggered tells that what happened at these times is in force now.
func (p *Progress) Triggered(at []time.Time) {
	for _, t := range at {
		p.programmed.Observe(max(0, time.Since(t)).Seconds()) // by the clock of whoever saw it happen
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

// Counters are how long all that took, also under the names of kube-proxy, for dashboards and alerts that were made
// for it.
func (p *Progress) Counters() counter.List {
	p.mu.Lock()
	failed, updated := p.failed, p.updated
	p.mu.Unlock()
	synced := p.synced.Counter("tapestry_sync_duration_seconds", "Time from a snapshot of the cluster to its being in force on this node.")
	programmed := p.programmed.Counter("tapestry_network_programming_duration_seconds",
		"Time from a change of a pod or Service, by the controller's clock, to its being in force on this node.")
	last := 0.0
	if !updated.IsZero() {
		last = float64(updated.UnixMilli()) / 1000
	}
	return counter.List{
		synced, programmed,
		counter.One(counter.Total, "tapestry_sync_failures_total", "Snapshots of the cluster that were not applied whole.", failed),
		synced.Called("kubeproxy_sync_proxy_rules_duration_seconds", "The same as tapestry_sync_duration_seconds."),
		programmed.Called("kubeproxy_network_programming_duration_seconds", "The same as tapestry_network_programming_duration_seconds."),
		counter.One(counter.Gauge, "kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When a snapshot of the cluster was in force last.", last),
	}
}
