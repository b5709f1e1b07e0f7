// Package counter is how the parts of a node report numbers. Each number has one name and a sentence with its meaning;
// whoever counts it provides them together with the value. Metrics, status and tests read one list of all numbers. The
// package is a leaf, which every package may import.
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
	Gauge        Kind = "gauge"     // rises and falls
	Total        Kind = "counter"   // only rises, from the start of the process
	Distribution Kind = "histogram" // how many values were of which size
)

// Counter is a number with a name, or several numbers that labels tell apart.
type Counter struct {
	// Name is unique in the process, such as "tapestry_drops_total". It is also the name in Prometheus.
	Name string `json:"name"`
	// Help is a sentence that says what is counted.
	Help string `json:"help"`
	Kind Kind   `json:"kind"`
	// Labels names what tells Values apart; it is empty where there is one Value. An address or a pod cannot be
	// a label, since there may be any number of those; a Service can where a limit says how many are told apart.
	Labels []string `json:"labels,omitempty"`
	Values []Value  `json:"values,omitempty"`
}

// Value is one number of a Counter.
type Value struct {
	// Labels holds this Value's labels, in the order of Counter.Labels.
	Labels []string `json:"labels,omitempty"`
	// N is the number. For a Distribution it is the sum of all observed values.
	N float64 `json:"n"`
	// Count is the number of values that a Distribution observed. Buckets says how many values were at most a bound,
	// for growing bounds.
	Count   uint64   `json:"count,omitempty"`
	Buckets []Bucket `json:"buckets,omitempty"`
}

// Bucket is the number of observed values of at most Bound.
type Bucket struct {
	Bound float64 `json:"bound"`
	Count uint64  `json:"count"`
}

// Number lists the types that can be counted.
type Number interface {
	~int | ~int64 | ~uint64 | ~float64
}

// One returns a Counter with a single value.
func One[N Number](kind Kind, name, help string, n N) Counter {
	return Counter{Name: name, Help: help, Kind: kind, Values: []Value{{N: float64(n)}}}
}

// By returns a Counter whose values are told apart by one label.
func By[N Number](kind Kind, name, help, label string, values map[string]N) Counter {
	c := Counter{Name: name, Help: help, Kind: kind, Labels: []string{label}}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		c.Values = append(c.Values, Value{Labels: []string{k}, N: float64(values[k])})
	}
	return c
}

// Called returns the same Counter under another name.
func (c Counter) Called(name, help string) Counter {
	c.Name, c.Help = name, help
	return c
}

// List is everything that is counted.
type List []Counter

// Find returns the Counter with a name, or the zero Counter.
func (l List) Find(name string) Counter {
	for i := range l {
		if l[i].Name == name {
			return l[i]
		}
	}
	return Counter{}
}

// Get returns the value of a Counter with one value; 0 where there is no such Counter.
func (l List) Get(name string) float64 {
	if c := l.Find(name); len(c.Values) == 1 {
		return c.Values[0].N
	}
	return 0
}

// Of returns the values of a Counter by its first label, summed over the others. The map is never nil.
func (l List) Of(name string) map[string]float64 {
	m := map[string]float64{}
	for _, v := range l.Find(name).Values {
		if len(v.Labels) > 0 {
			m[v.Labels[0]] += v.N
		}
	}
	return m
}

// Sort sorts the list by name.
func (l List) Sort() {
	slices.SortFunc(l, func(a, b Counter) int { return cmp.Compare(a.Name, b.Name) })
}

// Histogram collects values for a Distribution. Make it with NewHistogram. Its methods are safe for concurrent use.
type Histogram struct {
	bounds []float64
	counts []atomic.Uint64 // by bucket, the last for values above all bounds; not cumulative
	sum    atomic.Uint64   // bits of a float64
}

// NewHistogram returns a Histogram with this number of bounds; each bound is twice the one before.
func NewHistogram(first float64, bounds int) *Histogram {
	h := &Histogram{counts: make([]atomic.Uint64, bounds+1)}
	for range bounds {
		h.bounds = append(h.bounds, first)
		first *= 2
	}
	return h
}

// Observe adds a value.
func (h *Histogram) Observe(v float64) {
	h.counts[sort.SearchFloat64s(h.bounds, v)].Add(1)
	for {
		old := h.sum.Load()
		if h.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// Value returns what was observed.
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

// Counter returns a Distribution with what was observed as its only Value.
func (h *Histogram) Counter(name, help string) Counter {
	return Counter{Name: name, Help: help, Kind: Distribution, Values: []Value{h.Value()}}
}
