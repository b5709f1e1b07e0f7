package latency

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func names(list ...string) (all []Name) {
	for _, text := range list {
		var n Name
		fmt.Sscanf(text, "%s %s", &n.Namespace, &n.Name)
		all = append(all, n)
	}
	return all
}

func TestNamed(t *testing.T) {
	many := names("a 1", "a 2", "a 3", "a 4", "b 1", "c 1", "c 2")
	for _, c := range []struct {
		limit int
		want  []Name
	}{
		{0, nil}, {1, names("a 1")}, {3, names("a 1", "b 1", "c 1")}, {5, names("a 1", "b 1", "c 1", "a 2", "c 2")},
		{6, names("a 1", "b 1", "c 1", "a 2", "c 2", "a 3")}, {7, many}, {100, many},
	} {
		if got := Named(many, c.limit); !slices.Equal(got, c.want) {
			t.Errorf("%d: %v, want %v", c.limit, got, c.want)
		}
	}
	if got := Named(nil, 3); len(got) != 0 {
		t.Errorf("of none: %v", got)
	}
}

// Whoever makes many Services takes no series from a namespace with few.
func TestManyServicesOfOneNamespace(t *testing.T) {
	m := New(10)
	few := names("quiet 1", "quiet 2")
	m.Set(few)
	series := m.Of(few[1])
	series.Observe(1)
	var all []Name
	for i := range 1000 {
		all = append(all, Name{"loud", fmt.Sprintf("%04d", i)})
	}
	m.Set(append(all, few...))
	if m.Of(few[1]) != series || series.Value().Count != 1 {
		t.Error("the quiet namespace has lost its series")
	}
	if n := len(m.Names()); n != 10 {
		t.Errorf("%d Services have series, want 10", n)
	}
	if m.Of(all[999]) != m.Of(Name{}) {
		t.Error("a Service beyond the limit has a series of its own")
	}
}

func TestAnswers(t *testing.T) {
	m := New(10)
	all := names("a 1", "a 2")
	m.Set(all)
	m.Begun(1, m.Of(all[0]), time.Second)
	m.Begun(2, m.Of(all[1]), time.Second)
	m.Begun(1+shards*perShard*3, m.Of(all[1]), 2*time.Second) // takes the place of flow 1
	for _, c := range []struct {
		ref  uint32
		took time.Duration
		ok   bool
	}{{1, 0, false}, {2, 2 * time.Second, true}, {2, 0, false}, {1 + shards*perShard*3, time.Second, true}, {99, 0, false}} {
		if took, ok := m.Answered(c.ref, 3*time.Second); took != c.took || ok != c.ok {
			t.Errorf("flow %d: %v, %v, want %v, %v", c.ref, took, ok, c.took, c.ok)
		}
	}
	if a, b := m.Of(all[0]).Value(), m.Of(all[1]).Value(); a.Count != 0 || b.Count != 2 || b.N != 3 {
		t.Errorf("got %+v and %+v", a, b)
	}
	if n := testing.AllocsPerRun(100, func() {
		m.Begun(7, m.Of(all[0]), time.Second)
		m.Answered(7, 2*time.Second)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
