package health

import (
	"fmt"
	"sync"
	"time"

	"tapestry.dev/tapestry/counter"
)

// stuckTime is how long it may take to apply a snapshot of the cluster. kube-proxy uses the same limit.
const stuckTime = time.Minute

// Progress records how snapshots of the cluster are applied to the node. NewProgress makes one. Its methods may be
// called concurrently.
type Progress struct {
	synced, programmed *counter.Histogram // in seconds

	mu      sync.Mutex
	since   time.Time // when the present snapshot began to be applied; zero: none is being applied
	updated time.Time // when a snapshot was last applied
	failed  uint64    // number of snapshots with parts that were not applied
	leaving bool      // the node is being deleted
}

// NewProgress returns a Progress without snapshots.
func NewProgress() *Progress {
	const first, bounds = 0.001, 15 // 1 ms to 16 s
	return &Progress{synced: counter.NewHistogram(first, bounds), programmed: counter.NewHistogram(first, bounds)}
}

// Begin records that a snapshot is being applied. The caller must call end afterwards, with whether the node is being
// deleted, and an error if parts were not applied.
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

// Triggered records that the changes of these times are applied now.
func (p *Progress) Triggered(at []time.Time) {
	for _, t := range at {
		p.programmed.Observe(max(0, time.Since(t)).Seconds()) // by the clock of the controller that saw the change
	}
}

// Alive returns an error if the node is stuck applying a snapshot.
func (p *Progress) Alive() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stuck := time.Since(p.since); !p.since.IsZero() && stuck > stuckTime {
		return fmt.Errorf("the cluster's state has not been applied for %s", stuck.Truncate(time.Second))
	}
	return nil
}

// Eligible returns false while the node is being deleted.
func (p *Progress) Eligible() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.leaving
}

// Updated returns when a snapshot was last applied; zero before the first.
func (p *Progress) Updated() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.updated
}

// Counters returns the counters and durations. Some also have kube-proxy's names, for dashboards and alerts made for
// kube-proxy.
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
