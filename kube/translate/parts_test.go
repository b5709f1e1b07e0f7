package translate

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
)

// largeSlice returns a slice of the Service d/s with n endpoints.
func largeSlice(number, n int) *discoveryv1.EndpointSlice {
	name, port := "http", int32(8080)
	es := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "d", Name: fmt.Sprintf("s-%04d", number), Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for i := range n {
		k := number*n + i
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+k>>16, k>>8&255, k&255)},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: types.UID(fmt.Sprint("uid-", k))},
		})
	}
	return es
}

func largeService() *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "s"}}
	s.Spec.ClusterIP, s.Spec.Ports = "10.96.0.7", []corev1.ServicePort{{Name: "http", Port: 80}}
	return s
}

// allOf returns the endpoints of the Service d/s, sorted, each once.
func allOf(r Result) (list []services.Endpoint) {
	for e := range r.Services.Services.At(0).All() {
		list = append(list, *e)
	}
	slices.SortFunc(list, func(a, b services.Endpoint) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.ID, b.ID), cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	})
	return slices.CompactFunc(list, func(a, b services.Endpoint) bool { return reflect.DeepEqual(a, b) })
}

// TestPartsTwin changes the slices of a large Service, the pods that leave, and what makes endpoints lead nowhere, one
// after another. The Translator that remembers parts says what one says that knows nothing yet, and all of the
// endpoints that its slices have.
func TestPartsTwin(t *testing.T) {
	parted := 0
	for seed := range uint64(3) {
		r := rand.New(rand.NewPCG(seed, 9))
		objs := kube.Objects{Services: []*corev1.Service{largeService()}, Nodes: []*corev1.Node{{
			ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}},
		}}}
		list := []*discoveryv1.EndpointSlice{largeSlice(0, 400), largeSlice(1, 400), largeSlice(2, 400)}
		var m Translator
		for step := range 20 {
			list = slices.Clone(list)
			i := r.IntN(len(list))
			es := list[i].DeepCopy()
			switch r.IntN(7) {
			case 0:
				es.Endpoints = slices.Delete(es.Endpoints, 3, 4)
			case 1: // into two slices
				es.Endpoints = append(es.Endpoints, list[(i+1)%len(list)].Endpoints[5])
			case 2: // a Service's own address, and no address
				es.Endpoints[7].Addresses = []string{"10.96.0.7"}
				es.Endpoints[8].Addresses = []string{"x"}
			case 3:
				objs.Pods = append(slices.Clone(objs.Pods), &corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: fmt.Sprint("p", step), UID: es.Endpoints[9].TargetRef.UID, DeletionTimestamp: &metav1.Time{}},
					Spec:       corev1.PodSpec{NodeName: "n"},
				})
			case 4:
				list = append(list, largeSlice(3+step, 400))
			case 5:
				if len(list) > 2 {
					list = slices.Delete(list, 0, 1)
					i = 0
					es = list[0]
				}
			default:
				name := "named"
				es.Endpoints[11].Hostname = &name
			}
			list[i] = es
			objs.EndpointSlices = roll.From(list)
			got, want := m.Translate(objs, Options{Node: "n"}), Translate(objs, Options{Node: "n"})
			if a, b := allOf(want), allOf(got); !reflect.DeepEqual(a, b) {
				t.Fatalf("seed %d, step %d: %d endpoints differ from %d", seed, step, len(b), len(a))
			}
			if !reflect.DeepEqual(want.Problems, got.Problems) {
				t.Fatalf("seed %d, step %d: problems %v, want %v", seed, step, got.Problems, want.Problems)
			}
			if !reflect.DeepEqual(want.DNS, got.DNS) {
				t.Fatalf("seed %d, step %d: names %v, want %v", seed, step, got.DNS, want.DNS)
			}
			if len(got.Services.Services.At(0).Parts) > 0 {
				parted++
			}
		}
	}
	if parted < 30 {
		t.Errorf("the Service had parts %d times only", parted)
	}
}

// One endpoint's change in a Service with 100 slices of 1,000 allocates what it does with two, but for what there is
// once for each slice.
func TestEndpointAmongHundredThousand(t *testing.T) {
	measure := func(n int) uint64 {
		objs := kube.Objects{Services: []*corev1.Service{largeService()}}
		var list []*discoveryv1.EndpointSlice
		for i := range n {
			list = append(list, largeSlice(i, 1000))
		}
		objs.EndpointSlices = roll.From(list)
		less := list[n/2].DeepCopy()
		less.Endpoints = less.Endpoints[1:]
		forms, turn := [2]*discoveryv1.EndpointSlice{list[n/2], less}, 0
		var m Translator
		step := func() {
			es := forms[turn%2]
			turn++
			objs.EndpointSlices = objs.EndpointSlices.With(roll.Edit[*discoveryv1.EndpointSlice]{At: n / 2, To: es})
			r := m.Translate(objs, Options{Node: "n0"})
			if got, want := r.Services.Services.At(0).Len(), (n-1)*1000+len(es.Endpoints); got != want {
				t.Fatalf("%d endpoints came to %d", want, got)
			}
		}
		step()
		step()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 20 {
			step()
		}
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / 20
	}
	few, many := measure(2), measure(100)
	if t.Logf("%d bytes with 2 slices, %d with 100", few, many); many > few+100_000 {
		t.Errorf("%d bytes with 100 slices, %d with 2", many, few)
	}
}

// The endpoints of a Service stay in parts where these are many, and where parts and ports together are not too many.
func TestMany(t *testing.T) {
	for _, c := range []struct {
		slices, endpoints, ports int
		want                     bool
	}{
		{1, 1001, 1, false}, {2, 500, 1, false}, {2, 501, 1, true}, {1001, 1, 1, true}, {1000, 100, 100, true},
		{1001, 1, 100, false}, {1001, 1, 20_000, false}, {2, 1000, 50_000, true}, {2, 1000, 50_001, false},
	} {
		objs := kube.Objects{Services: []*corev1.Service{largeService()}}
		s := objs.Services[0]
		for i := range c.ports - 1 {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(1000 + i)})
		}
		var list []*discoveryv1.EndpointSlice
		for i := range c.slices {
			list = append(list, largeSlice(i, c.endpoints))
		}
		objs.EndpointSlices = roll.From(list)
		svc := Translate(objs, Options{Node: "n"}).Services.Services.At(0)
		if got := len(svc.Parts) > 0; got != c.want || svc.Len() != c.slices*c.endpoints {
			t.Errorf("%d slices of %d endpoints, %d ports: parts %v, want %v, and %d endpoints", c.slices, c.endpoints, c.ports, got, c.want, svc.Len())
		}
	}
}

// Nothing is remembered of the parts of a Service that has none any longer.
func TestPartsForgotten(t *testing.T) {
	large := []*discoveryv1.EndpointSlice{largeSlice(0, 600), largeSlice(1, 600)}
	for name, change := range map[string]func(*kube.Objects){
		"fewer endpoints": func(o *kube.Objects) {
			o.EndpointSlices = roll.From([]*discoveryv1.EndpointSlice{large[0], largeSlice(1, 3)})
		},
		"too many": func(o *kube.Objects) {
			o.EndpointSlices = roll.From(append(slices.Clone(large), largeSlice(2, mostPairs)))
		},
		"another's name": func(o *kube.Objects) {
			o.Services[0].Spec.Type, o.Services[0].Spec.ExternalName = corev1.ServiceTypeExternalName, "a.example"
		},
		"no Service at all": func(o *kube.Objects) { o.Services = nil },
	} {
		t.Run(name, func(t *testing.T) {
			objs := kube.Objects{Services: []*corev1.Service{largeService()}, EndpointSlices: roll.From(large)}
			var m Translator
			m.Translate(objs, Options{Node: "n"})
			known := func() int { return len(m.services.parts.known) + len(m.services.leading.parts.known) }
			if n := known(); n != 2 {
				t.Fatalf("%d of 2 stages remember parts", n)
			}
			objs.Services = []*corev1.Service{largeService()}
			change(&objs)
			m.Translate(objs, Options{Node: "n"})
			if n := known(); n != 0 {
				t.Errorf("%d stages still remember parts", n)
			}
		})
	}
}
