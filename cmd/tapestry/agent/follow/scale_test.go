package follow

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/roll"
)

// many returns a cluster of n Services with three endpoints each.
func many(n int) (kube.Objects, error) {
	var text strings.Builder
	text.WriteString(nodeYAML("10.244.1.0/24"))
	for i := range n {
		low := fmt.Sprintf("%d.%d", i>>8&255, i&255)
		fmt.Fprintf(&text, `---
{apiVersion: v1, kind: Service, metadata: {name: s%05[1]d}, spec: {clusterIP: 10.97.%[2]s, ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s%05[1]d-x, namespace: default, labels: {kubernetes.io/service-name: s%05[1]d}},
addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.130.%[2]s]}, {addresses: [10.131.%[2]s]}, {addresses: [10.132.%[2]s]}]}
`, i, low)
	}
	objs, err := codec.Decode("in.yaml", []byte(text.String()))
	objs.Origin = nil // as those of an API server
	return objs.Sorted(&kube.Objects{}), err
}

func with[T comparable](list roll.List[T], i int, x T) roll.List[T] {
	return list.With(roll.Edit[T]{At: i, To: x})
}

// BenchmarkApply changes one endpoint among many Services, from the snapshot to the tables in force.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{10, 1000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			f, _ := newFollower(b)
			defer f.Close()
			objs, err := many(n)
			if err != nil {
				b.Fatal(err)
			}
			whole := objs.EndpointSlices
			less := whole.At(n / 2).DeepCopy()
			less.Endpoints = less.Endpoints[1:]
			turns := [2]kube.Objects{objs, objs}
			turns[0].EndpointSlices = with(whole, n/2, less)
			turn := 0
			apply := func() error {
				objs = turns[turn%2]
				turn++
				return f.apply(objs, nil)
			}
			if err := apply(); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				_ = apply()
			}
		})
	}
}

// large returns a cluster of 10 Services and one of n endpoints, in slices of 1,000.
func large(n int) (kube.Objects, error) {
	objs, err := many(10)
	if err != nil {
		return objs, err
	}
	var text strings.Builder
	text.WriteString("{apiVersion: v1, kind: Service, metadata: {name: t-large}, spec: {clusterIP: 10.97.9.9, ports: [{name: http, port: 80}]}}\n")
	for i := range n {
		if i%1000 == 0 {
			fmt.Fprintf(&text, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: t-large-%03d, namespace: default, labels: {kubernetes.io/service-name: t-large}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
`, i/1000)
		}
		fmt.Fprintf(&text, "- {addresses: [10.%d.%d.%d], nodeName: n%d, targetRef: {kind: Pod, name: p, uid: uid-%d}}\n", 140+i>>16, i>>8&255, i&255, i%200, i)
	}
	more, err := codec.Decode("large.yaml", []byte(text.String()))
	if err != nil {
		return objs, err
	}
	objs, err = kube.Merge(objs, more)
	objs.Origin = nil
	return objs, err
}

// BenchmarkLarge changes one endpoint among those of one Service, from the snapshot to the tables in force, and reports
// the first snapshot beside it: how long it took, and what its tables hold.
func BenchmarkLarge(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			f, _ := newFollower(b)
			defer f.Close()
			objs, err := large(n)
			if err != nil {
				b.Fatal(err)
			}
			at := objs.EndpointSlices.Len() - 1 - n/2000
			whole := objs.EndpointSlices
			less := whole.At(at).DeepCopy()
			less.Endpoints = less.Endpoints[1:]
			turns := [2]kube.Objects{objs, objs}
			turns[0].EndpointSlices = with(whole, at, less)
			before, began := heap(), time.Now()
			if err := f.apply(objs, nil); err != nil {
				b.Fatal(err)
			}
			first := time.Since(began)
			held, turn := heap()-before, 0
			b.ReportAllocs()
			for b.Loop() {
				_ = f.apply(turns[turn%2], nil)
				turn++
			}
			b.ReportMetric(float64(first.Milliseconds()), "first-ms")
			b.ReportMetric(float64(held)/1e6, "held-MB")
		})
	}
}

// heap returns how many bytes are in use after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
