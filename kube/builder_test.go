package kube

import (
	"fmt"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// slicesOf returns n EndpointSlices.
func slicesOf(n int) []*discoveryv1.EndpointSlice {
	list := make([]*discoveryv1.EndpointSlice, n)
	for i := range list {
		list[i] = &discoveryv1.EndpointSlice{}
		list[i].Namespace, list[i].Name = "d", fmt.Sprintf("s%06d", i)
	}
	return list
}

func build(list []*discoveryv1.EndpointSlice) Objects {
	var all Builder
	for _, s := range list {
		all.Add(s, "")
	}
	return all.Objects()
}

// Ten times as many objects take ten times the memory to gather, and not a hundred times, of kinds with lists of either
// form.
func TestBuilderIsLinear(t *testing.T) {
	for name, gather := range map[string]func(n int) func() int{
		"EndpointSlices": func(n int) func() int {
			list := slicesOf(n)
			return func() int {
				o := build(list)
				return o.EndpointSlices.Len()
			}
		},
		"Services": func(n int) func() int {
			list := make([]corev1.Service, n)
			return func() int {
				var all Builder
				for i := range list {
					all.Add(&list[i], "")
				}
				return len(all.Objects().Services)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bytes := func(n int) uint64 {
				f := gather(n)
				if got := f(); got != n {
					t.Fatalf("%d objects became %d", n, got)
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				f()
				runtime.ReadMemStats(&after)
				return after.TotalAlloc - before.TotalAlloc
			}
			few, many := bytes(5000), bytes(50_000)
			t.Logf("%d bytes for 5,000, %d for 50,000", few, many)
			if many > 20*few {
				t.Errorf("50,000 objects took %d bytes, 5,000 took %d", many, few)
			}
		})
	}
}

// BenchmarkBuild gathers EndpointSlices, as when a saved snapshot is read.
func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{10_000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			list := slicesOf(n)
			b.ReportAllocs()
			for b.Loop() {
				build(list)
			}
		})
	}
}
