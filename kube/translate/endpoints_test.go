package translate

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
)

// wide puts a Service with that many ports into objs, with EndpointSlices of 1,000 addresses, each with all ports.
func wide(objs *kube.Objects, name string, ports, addresses int) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: fmt.Sprintf("10.96.1.%d", len(objs.Services))}}
	var list []discoveryv1.EndpointPort
	for i := range ports {
		text, number := fmt.Sprint("p", i), int32(1+i)
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: text, Port: number})
		list = append(list, discoveryv1.EndpointPort{Name: &text, Port: &number})
	}
	objs.Services = append(objs.Services, s)
	for first := 0; first < addresses; first += 1000 {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "x", Name: fmt.Sprintf("%s-%05d", name, first), Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: list,
		}
		for i := first; i < min(first+1000, addresses); i++ {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 1+len(objs.Services), i/250, 1+i%250)}})
		}
		objs.EndpointSlices = objs.EndpointSlices.Append(slice)
	}
}

// A Service whose ports times addresses are over the limit is left out and told, and those within it are served.
func TestPairs(t *testing.T) {
	objs := kube.Objects{}
	wide(&objs, "a", 1000, 100)
	wide(&objs, "b", 1001, 100)
	wide(&objs, "c", 10, 10_000)
	wide(&objs, "d", 100, 10_000)
	wide(&objs, "e", 5000, 1000)
	wide(&objs, "f", 1, 3)
	r := Translate(objs, Options{Node: "n"})
	for i, want := range []int{100, 0, 10_000, 0, 0, 3} {
		if s := r.Services.Services.At(i); s.Len() != want {
			t.Errorf("%s has %d endpoints, want %d", s.Name, s.Len(), want)
		}
	}
	var told []string
	for _, p := range r.Problems {
		if p.Object.Kind == "Node" {
			continue // there is none
		}
		told = append(told, fmt.Sprintf("%s: %s", p.Object, p.Message))
	}
	text := strings.Join(told, "\n")
	for _, want := range []string{"Service x/b: its EndpointSlices have 100100 pairs", "Service x/d: its EndpointSlices have 1000000 pairs", "Service x/e: its EndpointSlices have 5000000 pairs"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not told", want)
		}
	}
	if len(told) != 3 {
		t.Errorf("told is %q", told)
	}
}

// What a Service over the limit costs grows with what its user wrote, not with its product.
func TestPairsCost(t *testing.T) {
	objs := kube.Objects{}
	wide(&objs, "a", 3000, 1000)
	objs.Sort()
	f := parseService(objs.Services[0], false, new(kube.Report))
	list := objs.EndpointSlices.Slice()
	if n := testing.AllocsPerRun(10, func() { endpoints(list, site{}, new(kube.Report)) }); n > 20 {
		t.Errorf("%v allocations for the endpoints of a Service with %d ports", n, len(f.Ports))
	}
}

// BenchmarkPairs translates one Service with many ports and addresses. Over the limit it costs what reading its ports
// costs.
func BenchmarkPairs(b *testing.B) {
	for _, bb := range []struct{ ports, addresses int }{{1, 1000}, {100, 1000}, {1000, 1000}, {3000, 1000}, {5000, 1000}, {10, 10_000}, {100, 10_000}} {
		b.Run(fmt.Sprintf("ports=%d/addresses=%d", bb.ports, bb.addresses), func(b *testing.B) {
			objs := kube.Objects{}
			wide(&objs, "a", bb.ports, bb.addresses)
			b.ReportAllocs()
			for b.Loop() {
				Translate(objs, Options{Node: "n"})
			}
		})
	}
}
