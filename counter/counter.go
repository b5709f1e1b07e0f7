// Package counter is how the parts of a node tell numbers: each has one name, says what it means, and is given together
// with its value by whoever counts. Metrics, status and tests read one list of them. It is a leaf, which everyone may
// import.
package counter

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"sort"
	"sync/atomic"
)

// Kind says how a number behaves.
type Kind string

// The kinds.
const (
	Gauge        Kind = "gauge"     // goes up and down
	Total        Kind = "counter"   // only grows, from the start of the process
	Distribution Kind = "histogram" // how often values were how large
)

// Counter is a number with a name, or several that labels tell apart.
type Counter struct {
	// Name is unique in the process, like "tapestry_drops_total", and Prometheus's too.
	Name string `json:"name"`
	// Help is a sentence that says what is counted.
	Help string `json:"help"`
	Kind Kind   `json:"kind"`
	// Labels are the names of what tells Values apart; none where there is one Value. No label may be an address, a pod or
	// a Service: there may be any number of those.
	Labels []string `json:"labels,omitempty"`
	Values []Value  `json:"values,omitempty"`
}

// Value is one number of a Counter.
type Value struct {
	// Labels are those of this Value, in the order of the Counter's.
	Labels []string `json:"labels,omitempty"`
	// N is the number; of a Distribution the sum of what was observed.
	N float64 `json:"n"`
	// Count says how often a Distribution was observed, and Buckets how often the value was at most a bound, for growing
	// bounds.
	Count   uint64   `json:"count,omitempty"`
	Buckets []Bucket `json:"buckets,omitempty"`
}

// Bucket counts the observations of at most a bound.
type Bucket struct {
	Bound float64 `json:"bound"`
	Count uint64  `json:"count"`
}

// Number is what can be counted.
type Number interface {
	~int | ~int64 | ~uint64 | ~float64
}

// One is a Counter with a single value.
func One[N Number](kind Kind, name, help string, n N) Counter {
	return Counter{Name: name, Help: help, Kind: kind, Values: []Value{{N: float64(n)}}}
}

// By is a Counter whose values one label tells apart.
func By[N Number](kind Kind, name, help, label string, values map[string]N) Counter {
	c := Counter{Name: name, Help: help, Kind: kind, Labels: []string{label}}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		c.Values = append(c.Values, Value{Labels: []string{k}, N: float64(values[k])})
	}
	return c
}

// Called gives the same Counter under another name.
func (c Counter) Called(name, help string) Counter {
	c.Name, c.Help = name, help
	return c
}

// List is everything that somebody counts.
type List []Counter

// Find gives the Counter of a name, or the zero one.
func (l List) Find(name string) Counter {
	for i := range l {
		if l[i].Name == name {
			return l[i]
		}
	}
	return Counter{}
}

// Get gives the value of a Counter that has one; 0 where there is none.
func (l List) Get(name string) float64 {
	if c := l.Find(name); len(c.Values) == 1 {
		return c.Values[0].N
	}
	return 0
}

// Of gives the values of a Counter by its first label. It is never nil.
func (l List) Of(name string) map[string]float64 {
	m := map[string]float64{}
	for _, v := range l.Find(name).Values {
		if len(v.Labels) > 0 {
			m[v.Labels[0]] += v.N
		}
	}
	return m
}

// Sort sorts by name.
func (l List) Sort() {
	slices.SortFunc(l, func(a, b Counter) int { return cmp.Compare(a.Name, b.Name) })
}

// Histogram observes values for a Distribution. Make it with NewHistogram. Its methods may be called concurrently.
type Histogram struct {
	bounds []float64
	counts []atomic.Uint64 // by bucket, and last what is above all bounds; not cumulative
	sum    atomic.Uint64   // bits of a float64
}

// NewHistogram makes a Histogram with so many bounds, of which each is twice the one before.
func NewHistogram(first float64, bounds int) *Histogram {
	h := &Histogram{counts: make([]atomic.Uint64, bounds+1)}
	for range bounds {
		h.bounds = append(h.bounds, first)
		first *= 2
	}
	return h
}

// Observe notes a value.
func (h *Histogram) Observe(v float64) {
	h.counts[sort.SearchFloat64s(h.bounds, v)].Add(1)
	for {
		old := h.sum.Load()
		if h.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// Value is what was observed.
func (h *Histogram) Value(labels ...string) Value {
	v := Value{Labels: labels, N: math.Float64frombits(h.sum.Load())}
	for i := range h.counts {
		v.Count += h.counts[i].Load()
		if i < len(h.bounds) {
			v.Buckets = append(v.Buckets, Bucket{h.bounds[i], v.Count})
		}
	}
	return v
}

// Counter is a Distribution with the one value.
func (h *Histogram) Counter(name, help string) Counter {
	return Counter{Name: name, Help: help, Kind: Distribution, Values: []Value{h.Value()}}
}
