package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
)

// TestStoreAlways changes a store at random. Each snapshot has what a map of the objects has, sorted, and no snapshot
// changes after it was taken.
func TestStoreAlways(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newStore[*discoveryv1.EndpointSlice](nil, func() {})
		twin := map[objectName]*discoveryv1.EndpointSlice{}
		var taken []kube.Objects
		var wants [][]*discoveryv1.EndpointSlice
		for range 60 {
			for range r.IntN(2 * fewChanged / (1 + r.IntN(20))) {
				obj := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint(r.IntN(3)), Name: fmt.Sprint(r.IntN(200)), Labels: map[string]string{"n": fmt.Sprint(r.Int())}}}
				if r.IntN(8) == 0 {
					_ = s.Delete(obj)
					delete(twin, nameOf(obj))
				} else {
					_ = s.Add(obj)
					twin[nameOf(obj)] = obj
				}
			}
			var objs kube.Objects
			s.put(&objs)
			taken = append(taken, objs)
			var want []*discoveryv1.EndpointSlice
			for _, obj := range twin {
				want = append(want, obj)
			}
			slices.SortFunc(want, func(a, b *discoveryv1.EndpointSlice) int { return nameOf(a).compare(nameOf(b)) })
			wants = append(wants, want)
		}
		for i, objs := range taken {
			if got := objs.EndpointSlices.Slice(); !slices.Equal(got, wants[i]) {
				t.Fatalf("seed %d: snapshot %d has %d objects, want %d, or others", seed, i, len(got), len(wants[i]))
			}
		}
	}
}

// One object changed among 50,000 costs a snapshot as many allocations as among 10.
func TestSnapshotAmongMany(t *testing.T) {
	changing := func(n int) func() {
		s := newStore[*discoveryv1.EndpointSlice](nil, func() {})
		for i := range n {
			_ = s.Add(&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: fmt.Sprintf("%06d", i)}})
		}
		var objs kube.Objects
		s.put(&objs)
		turn := 0
		return func() {
			obj := objs.EndpointSlices.At(n / 2).DeepCopy()
			obj.Labels = map[string]string{"turn": fmt.Sprint(turn % 10)}
			turn++
			_ = s.Add(obj)
			s.put(&objs)
		}
	}
	if few, many := testing.AllocsPerRun(20, changing(10)), testing.AllocsPerRun(20, changing(50_000)); many > few+5 {
		t.Errorf("%v allocations among 50,000 objects, %v among 10", many, few)
	}
}
