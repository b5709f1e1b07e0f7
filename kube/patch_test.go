package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestReplace(t *testing.T) {
	pod := func(name string) *corev1.Pod {
		p := &corev1.Pod{}
		p.Namespace, p.Name = "default", name
		return p
	}
	a, b, c := pod("a"), pod("b"), pod("c")
	var o, old, now Objects
	for i, p := range []*corev1.Pod{a, c} {
		o.Add(p, []string{"x:1", "y:1"}[i])
	}
	o.Add(&corev1.Node{}, "z:1")
	old.Add(c, "y:1")
	again := pod("c")
	now.Add(again, "y:1")
	now.Add(b, "y:5")

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

	var taken, stranger Objects
	taken.Add(pod("a"), "y:1")
	stranger.Add(pod("c"), "y:1")
	if _, ok := o.Replace(&old, &taken); ok {
		t.Error("a name was used twice")
	}
	if _, ok := o.Replace(&stranger, &now); ok {
		t.Error("an object of the same name passed for another")
	}
}
