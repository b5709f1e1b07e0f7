package kube

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// located is an object and where it was written.
type located struct {
	Object
	origin string
}

func gathered(list ...located) Objects {
	var all Builder
	for _, l := range list {
		all.Add(l.Object, l.origin)
	}
	return all.Objects()
}

func TestReplace(t *testing.T) {
	pod := func(name string) *corev1.Pod {
		p := &corev1.Pod{}
		p.Namespace, p.Name = "default", name
		return p
	}
	a, b, c := pod("a"), pod("b"), pod("c")
	again := pod("c")
	o := gathered(located{a, "x:1"}, located{c, "y:1"}, located{&corev1.Node{}, "z:1"})
	old, now := gathered(located{c, "y:1"}), gathered(located{again, "y:1"}, located{b, "y:5"})

	got, ok := o.Replace(&old, &now)
	if !ok || len(got.Pods) != 3 || got.Pods[0] != a || got.Pods[1] != b || got.Pods[2] != again {
		t.Fatalf("got %v, %v", got.Pods, ok)
	}
	if got.Origin[RefOf(b)] != "y:5" || got.Origin[RefOf(a)] != "x:1" || len(o.Origin) != 3 || len(got.Origin) != 4 {
		t.Errorf("origins %v, before %v", got.Origin, o.Origin)
	}
	if len(o.Pods) != 2 || o.Pods[1] != c || &got.Nodes[0] != &o.Nodes[0] {
		t.Error("the snapshot before was changed, or its other lists were copied")
	}
	back, ok := got.Replace(&now, &old)
	if !ok || len(back.Pods) != 2 || back.Pods[1] != c || len(back.Origin) != 3 {
		t.Errorf("back: %v, %v", back, ok)
	}

	taken, stranger := gathered(located{pod("a"), "y:1"}), gathered(located{pod("c"), "y:1"})
	if _, ok := o.Replace(&old, &taken); ok {
		t.Error("a name was used twice")
	}
	if _, ok := o.Replace(&stranger, &now); ok {
		t.Error("an object of the same name passed for another")
	}
}

// isSorted must find out whether a list is sorted, whatever list it knows.
func TestIsSorted(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	var pods []*corev1.Pod
	for i := range 40 {
		p := &corev1.Pod{}
		p.Name = fmt.Sprintf("p%02d", i/2)
		pods = append(pods, p)
	}
	var seen [2]int
	for range 5000 {
		known := slices.Clone(pods[:20+random.IntN(20)])
		list := slices.Clone(known)
		for range random.IntN(4) {
			i, other := random.IntN(len(list)), pods[random.IntN(len(pods))]
			switch random.IntN(4) {
			case 0:
				list = slices.Delete(list, i, i+1)
			case 1:
				list = slices.Insert(list, i, other)
			case 2:
				list[i] = other
			default:
				same := *list[i] // of the same name
				list[i] = &same
			}
		}
		want := slices.IsSortedFunc(list, compareNames[*corev1.Pod])
		if got := isSorted(list, known); got != want {
			t.Fatalf("%v, known %v: got %v", list, known, got)
		}
		if want {
			seen[1]++
		} else {
			seen[0]++
		}
	}
	if min(seen[0], seen[1]) < 500 {
		t.Errorf("unsorted and sorted: %v", seen)
	}
}
