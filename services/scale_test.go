package services

import (
	"fmt"
	"runtime"
	"testing"

	"tapestry.dev/tapestry/roll"
)

// changing returns a func that changes one endpoint of one Service among n, and back, in turns.
func changing(n int) func() {
	c := cluster(n, 3)
	c.Services = sorted(c.Services)
	table, _ := NewTable(c)
	at := n / 2
	next, forms, turn := c, [2]*Service{fewer(c.Services.At(at)), c.Services.At(at)}, 0
	return func() {
		next.Services = next.Services.With(roll.Edit[*Service]{At: at, To: forms[turn%2]})
		turn++
		table, _ = table.Update(next)
	}
}

// One endpoint's change among 50,000 Services takes about as many allocations as among 10, and no more bytes than the
// blocks of lists that it is in.
func TestEndpointAmongMany(t *testing.T) {
	few, many := changing(10), changing(50_000)
	fewTimes, manyTimes := testing.AllocsPerRun(20, few), testing.AllocsPerRun(20, many)
	fewBytes, manyBytes := bytesOf(few), bytesOf(many)
	t.Logf("%v allocations of %d bytes among 10, %v of %d among 50,000", fewTimes, fewBytes, manyTimes, manyBytes)
	if manyTimes > fewTimes+40 || manyBytes > fewBytes+40_000 {
		t.Errorf("%v allocations of %d bytes among 50,000 Services, %v of %d among 10", manyTimes, manyBytes, fewTimes, fewBytes)
	}
}

// bytesOf returns how many bytes f allocates on average.
func bytesOf(f func()) uint64 {
	const times = 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range times {
		f()
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / times
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
