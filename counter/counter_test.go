package counter

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

func TestList(t *testing.T) {
	l := List{
		One(Total, "b_total", "", uint64(7)),
		By(Gauge, "a", "", "state", map[string]int{"up": 2, "down": 1}),
		{Name: "c", Labels: []string{"x", "y"}, Values: []Value{{Labels: []string{"1", "1"}, N: 3}, {Labels: []string{"1", "2"}, N: 4}}},
	}
	l.Sort()
	if l[0].Name != "a" || l[0].Values[0].Labels[0] != "down" {
		t.Errorf("the list is not sorted: %+v", l)
	}
	if l.Get("b_total") != 7 || l.Get("none") != 0 || l.Get("a") != 0 {
		t.Errorf("got %v, %v, %v", l.Get("b_total"), l.Get("none"), l.Get("a"))
	}
	if got := l.Of("a"); !maps.Equal(got, map[string]float64{"up": 2, "down": 1}) {
		t.Errorf("got %v", got)
	}
	if got := l.Of("c"); !maps.Equal(got, map[string]float64{"1": 7}) {
		t.Errorf("got %v", got)
	}
	if got := l.Of("none"); got == nil || len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// The Histogram is compared with a list of all values.
func TestHistogram(t *testing.T) {
	h := NewHistogram(1, 5) // 1, 2, 4, 8, 16
	var seen []float64
	var wg sync.WaitGroup
	r := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		v := float64(r.IntN(40)) // a whole number, so that the sum is exact
		seen = append(seen, v)
		wg.Go(func() { h.Observe(v) })
	}
	wg.Wait()
	v := h.Value("l")
	sum := 0.0
	for _, s := range seen {
		sum += s
	}
	if v.N != sum || v.Count != uint64(len(seen)) || !slices.Equal(v.Labels, []string{"l"}) || len(v.Buckets) != 5 {
		t.Errorf("got %+v, want %d with a sum of %v", v, len(seen), sum)
	}
	for i, b := range v.Buckets {
		want := uint64(0)
		for _, s := range seen {
			if s <= b.Bound {
				want++
			}
		}
		if b.Bound != float64(int(1)<<i) || b.Count != want {
			t.Errorf("bucket %d: %+v, want %d", i, b, want)
		}
	}
}
