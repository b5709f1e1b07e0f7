package translate

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
)

// TestSomewhere compares lists without gaps with those that are made anew each time.
func TestSomewhere(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var s somewhere[int]
		list := roll.From(make([]int, r.IntN(600)))
		for range 20 {
			switch {
			case r.IntN(8) == 0:
				list = list.Append(r.IntN(3))
			case list.Len() > 0:
				for range r.IntN(4) {
					list = list.With(roll.Edit[int]{At: r.IntN(list.Len()), To: r.IntN(4)})
				}
			}
			want := slices.DeleteFunc(list.Slice(), func(x int) bool { return x == 0 })
			if got := s.of(list).Slice(); !slices.Equal(got, want) {
				t.Fatalf("%v without gaps is %v, want %v", list.Slice(), got, want)
			}
		}
	}
}

// among returns a func that takes an endpoint from one of n Services, or gives it back, and translates the cluster.
func among(t *testing.T, n int) func() {
	port, name := int32(8080), "http"
	var objs kube.Objects
	var list []*discoveryv1.EndpointSlice
	for i := range n {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: fmt.Sprintf("s%05d", i)}}
		s.Spec.ClusterIP, s.Spec.Ports = fmt.Sprintf("10.97.%d.%d", i>>8&255, i&255), []corev1.ServicePort{{Name: name, Port: 80}}
		objs.Services = append(objs.Services, s)
		es := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "d", Name: s.Name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		}
		for j := range 3 {
			es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 130+j, i>>8&255, i&255)}})
		}
		list = append(list, es)
	}
	objs.EndpointSlices = roll.From(list)
	less := list[n/2].DeepCopy()
	less.Endpoints = less.Endpoints[1:]
	forms, turn := [2]*discoveryv1.EndpointSlice{list[n/2], less}, 0
	var m Translator
	return func() {
		es := forms[turn%2]
		turn++
		objs.EndpointSlices = objs.EndpointSlices.With(roll.Edit[*discoveryv1.EndpointSlice]{At: n / 2, To: es})
		if r := m.Translate(objs, Options{Node: "n0"}); len(r.Services.Services.At(n/2).Endpoints) != len(es.Endpoints) {
			t.Errorf("%d endpoints came to %d", len(es.Endpoints), len(r.Services.Services.At(n/2).Endpoints))
		}
	}
}

// One endpoint's change among 50,000 Services takes as many allocations as among 10, and no list of all of them.
func TestEndpointAmongMany(t *testing.T) {
	measure := func(n int) (times float64, bytes uint64) {
		step := among(t, n)
		step()
		times = testing.AllocsPerRun(20, step)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 20 {
			step()
		}
		runtime.ReadMemStats(&after)
		return times, (after.TotalAlloc - before.TotalAlloc) / 20
	}
	fewTimes, fewBytes := measure(10)
	manyTimes, manyBytes := measure(50_000)
	t.Logf("%v allocations of %d bytes among 10, %v of %d among 50,000", fewTimes, fewBytes, manyTimes, manyBytes)
	if manyTimes > fewTimes+20 || manyBytes > fewBytes+60_000 {
		t.Errorf("%v allocations of %d bytes among 50,000 Services, %v of %d among 10", manyTimes, manyBytes, fewTimes, fewBytes)
	}
}
