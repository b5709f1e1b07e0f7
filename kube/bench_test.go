package kube

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// many returns a sorted snapshot of 5,000 Services with one slice each.
func many() Objects {
	var all Builder
	for i := range 5000 {
		m := metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("service-%05d", i)}
		all.Add(&corev1.Service{ObjectMeta: m}, "")
		all.Add(&discoveryv1.EndpointSlice{ObjectMeta: m}, "")
	}
	objs := all.Objects()
	objs.Sort()
	return objs
}

// BenchmarkReplace replaces one slice among all, and puts it back.
func BenchmarkReplace(b *testing.B) {
	objs := many()
	again := *objs.EndpointSlices.At(2500)
	old, now := gathered(located{objs.EndpointSlices.At(2500), ""}), gathered(located{&again, ""})
	b.ReportAllocs()
	for b.Loop() {
		next, ok := objs.Replace(&old, &now)
		if !ok {
			b.Fatal("not replaced")
		}
		if next.Sorted(&objs); next.EndpointSlices.Len() != 5000 {
			b.Fatal("lost some")
		}
	}
}

// BenchmarkMerge joins two files of 5,000 objects.
func BenchmarkMerge(b *testing.B) {
	objs := many()
	one, two := Objects{Services: objs.Services}, Objects{EndpointSlices: objs.EndpointSlices}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Merge(one, two); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRefOf calls RefOf for every object.
func BenchmarkRefOf(b *testing.B) {
	objs := many()
	b.ReportAllocs()
	for b.Loop() {
		for _, s := range objs.Services {
			if RefOf(s).Kind == "" {
				b.Fatal("no kind")
			}
		}
	}
}
