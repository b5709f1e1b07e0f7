// Package latency measures how long Services take to their first answer: from a client's first packet to the first
// packet of a backend, as this node sees them. A Service has a series of its own as long as there are few Services;
// with more of them than the limit, the others share one.
//
// Which Services have a series is a pure function of their names (Named), so that all nodes agree and a restart changes
// nothing. Namespaces take turns: whoever makes many Services in one namespace takes no series from another namespace
// that has fewer.
package latency

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/counter"
)

// Limit is the number of Services with a series of their own, unless New is told otherwise. A series has about 20
// values.
const Limit = 200

// Name is a Service's namespace and name. The zero Name stands for all Services without a series.
type Name struct{ Namespace, Name string }

// The bounds of a series begin with half a millisecond and end with four seconds.
const (
	firstBound = 0.0005
	bounds     = 14
)

// Meter measures. Its methods may be called concurrently; Begun, Answered and Of allocate nothing.
type Meter struct {
	limit  int
	series atomic.Pointer[map[Name]*counter.Histogram] // with the zero Name
	starts [shards]shard
}

const (
	// shards is the number of locks over the flows that wait for an answer, and perShard the number of flows under one
	// lock. A flow that finds its place taken takes it: the other one goes unmeasured.
	shards   = 64
	perShard = 128
)

type shard struct {
	mu     sync.Mutex
	starts [perShard]start
}

// start is a flow that waits for its first answer.
type start struct {
	ref    uint32
	at     time.Duration // 0: no flow
	series *counter.Histogram
}

// New returns a Meter that gives a series of their own to so many Services.
func New(limit int) *Meter {
	m := &Meter{limit: limit}
	m.Set(nil)
	return m
}

// Set says which Services there are, sorted by namespace and name. Series of Services that still have one go on.
func (m *Meter) Set(all []Name) {
	old := m.series.Load()
	named := append(Named(all, m.limit), Name{})
	if old != nil && len(*old) == len(named) && !slices.ContainsFunc(named, func(n Name) bool { return (*old)[n] == nil }) {
		return
	}
	next := make(map[Name]*counter.Histogram, len(named))
	for _, n := range named {
		if old != nil {
			next[n] = (*old)[n]
		}
		if next[n] == nil {
			next[n] = counter.NewHistogram(firstBound, bounds)
		}
	}
	m.series.Store(&next)
}

// Named returns which of the Services have a series of their own: all of them if there are at most limit, else as many
// of each namespace as of every other one that has so many, the first by name.
func Named(all []Name, limit int) []Name {
	if len(all) <= limit {
		return slices.Clone(all)
	}
	var namespaces [][]Name
	for i := 0; i < len(all); {
		j := i
		for j < len(all) && all[j].Namespace == all[i].Namespace {
			j++
		}
		namespaces = append(namespaces, all[i:j])
		i = j
	}
	named := make([]Name, 0, limit)
	for turn := 0; ; turn++ {
		for _, list := range namespaces {
			if len(named) == limit {
				return named
			}
			if turn < len(list) {
				named = append(named, list[turn])
			}
		}
	}
}

// Of returns the series of a Service, which is that of the zero Name when the Service has none of its own.
func (m *Meter) Of(n Name) *counter.Histogram {
	series := *m.series.Load()
	if h := series[n]; h != nil {
		return h
	}
	return series[Name{}]
}

// Begun records that a flow began and waits for an answer. now is the time of a monotonic clock, more than 0.
func (m *Meter) Begun(ref uint32, series *counter.Histogram, now time.Duration) {
	s, at := m.at(ref)
	s.mu.Lock()
	*at = start{ref, now, series}
	s.mu.Unlock()
}

// Answered records the first answer of a flow, and returns how long it took. ok is false when that is not known.
func (m *Meter) Answered(ref uint32, now time.Duration) (took time.Duration, ok bool) {
	s, at := m.at(ref)
	s.mu.Lock()
	was := *at
	if was.at == 0 || was.ref != ref {
		s.mu.Unlock()
		return 0, false
	}
	*at = start{}
	s.mu.Unlock()
	took = now - was.at
	was.series.Observe(took.Seconds())
	return took, true
}

func (m *Meter) at(ref uint32) (*shard, *start) {
	s := &m.starts[ref%shards]
	return s, &s.starts[ref/shards%perShard]
}

// Names returns the Services with a series of their own, sorted.
func (m *Meter) Names() []Name {
	series := *m.series.Load()
	list := make([]Name, 0, len(series))
	for n := range series {
		if n != (Name{}) {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, Name.Compare)
	return list
}

// Compare compares names by namespace and name.
func (n Name) Compare(o Name) int {
	return cmp.Or(cmp.Compare(n.Namespace, o.Namespace), cmp.Compare(n.Name, o.Name))
}
