package services

import (
	"fmt"
	"slices"
	"testing"
)

// changing returns a func that changes one endpoint of one Service among n, and back, in turns.
func changing(n int) func() {
	c := cluster(n, 3)
	slices.SortFunc(c.Services, compareServices)
	table, _ := NewTable(c)
	at := n / 2
	next, forms, turn := c, [2]*Service{fewer(c.Services[at]), c.Services[at]}, 0
	lists := [2][]*Service{slices.Clone(c.Services), slices.Clone(c.Services)}
	return func() {
		next.Services = lists[turn%2] // each Config has a list of its own, as package translate makes them
		next.Services[at] = forms[turn%2]
		turn++
		table, _ = table.Update(next)
	}
}

// One endpoint's change among 50,000 Services takes as many allocations as among 10, and no frontend or other unit is
// made anew; what grows is a copy of one list of pointers.
func TestEndpointAmongMany(t *testing.T) {
	few, many := testing.AllocsPerRun(20, changing(10)), testing.AllocsPerRun(20, changing(50_000))
	if t.Logf("%v allocations among 10, %v among 50,000", few, many); many > few+5 {
		t.Errorf("%v allocations among 50,000 Services, %v among 10", many, few)
	}
}

// BenchmarkEndpointAmong measures the same.
func BenchmarkEndpointAmong(b *testing.B) {
	for _, n := range []int{10, 1000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			change := changing(n)
			b.ReportAllocs()
			for b.Loop() {
				change()
			}
		})
	}
}
