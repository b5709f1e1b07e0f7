//go:build !race

package cluster

import (
	"testing"

	"tapestry.dev/tapestry/kube/cluster/clustertest"
)

// BenchmarkSnapshot changes one slice among 5,000 and takes a snapshot.
func BenchmarkSnapshot(b *testing.B) {
	s := clustertest.New(b)
	c, err := New(Options{Node: "n1", Kubeconfig: s.Kubeconfig(), State: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	var services, slices []any
	for i := range scaleServices {
		services, slices = append(services, largeService(i)), append(slices, largeSlice(i))
	}
	var changing *source
	for _, s := range c.sources {
		var list []any
		switch s.name {
		case "Services":
			list = services
		case "EndpointSlices":
			list, changing = slices, s
		}
		if err := s.store.Replace(list, "1"); err != nil {
			b.Fatal(err)
		}
	}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		again := largeSlice(n % scaleServices)
		again.Endpoints = again.Endpoints[n%2:]
		n++
		if err := changing.store.Add(again); err != nil {
			b.Fatal(err)
		}
		objs, _, ready := c.snapshot(b.Context())
		if !ready || objs.EndpointSlices.Len() != scaleServices || len(objs.Services) != scaleServices {
			b.Fatal("the snapshot is not whole")
		}
	}
}
