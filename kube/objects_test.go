package kube

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// allKinds has one object of every kind, each in the namespace and with the name given.
func allKinds(namespace, name string) []metav1.Object {
	list := []metav1.Object{
		&corev1.Node{}, &corev1.Namespace{}, &corev1.Pod{}, &corev1.Service{}, &discoveryv1.EndpointSlice{},
		&networkingv1.Ingress{}, &networkingv1.IngressClass{}, &networkingv1.ServiceCIDR{}, &corev1.Secret{}, &corev1.ConfigMap{},
	}
	for _, obj := range list {
		obj.SetNamespace(namespace)
		obj.SetName(name)
	}
	return list
}

// Every function that goes through the kinds must know all of them.
func TestEveryKind(t *testing.T) {
	var objs Objects
	for _, name := range []string{"b", "a"} {
		for _, obj := range allKinds("x", name) {
			if !objs.Add(obj, "file:"+name) || RefOf(obj).Kind == "" {
				t.Fatalf("there is no place for %T", obj)
			}
		}
	}
	if objs.Len() != 20 || len(objs.Origin) != 20 {
		t.Fatalf("%d objects, %d origins", objs.Len(), len(objs.Origin))
	}
	clone := objs.Clone()
	clone.Sort()
	last := Ref{}
	for obj := range clone.All() {
		ref := RefOf(obj)
		if ref.Kind == last.Kind && ref.Compare(last) < 0 {
			t.Errorf("%s comes after %s", ref, last)
		}
		last = ref
	}
	for obj := range objs.All() {
		if obj.GetName() != "b" {
			t.Errorf("sorting the clone has changed the order of %s in the original", RefOf(obj).Kind)
		}
		break
	}
	merged, err := Merge(objs, clone)
	if merged.Len() != 20 || strings.Count(err.Error(), "already defined at") != 20 {
		t.Errorf("merged %d objects, error %v", merged.Len(), err)
	}
}

func TestAddRefusesOthers(t *testing.T) {
	var objs Objects
	if objs.Add(&corev1.Event{}, "f:1") || objs.Len() != 0 || len(objs.Origin) != 0 {
		t.Errorf("an Event was taken: %+v", objs)
	}
}

func TestProblem(t *testing.T) {
	p := Problem{Severity: Error, Object: Ref{"Pod", "default", "web"}, Origin: "lab.yaml:14", Field: "spec.x", Message: "is wrong"}
	if got, want := p.String(), "lab.yaml:14: Pod default/web: spec.x: is wrong"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	p = Problem{Object: Ref{Kind: "Node", Name: "n1"}, Message: "is wrong"}
	if got, want := p.String(), "Node n1: is wrong"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	list := []Problem{{Severity: Warning, Object: Ref{Name: "a"}}, {Severity: Error, Object: Ref{Name: "b"}}, {Severity: Error, Object: Ref{Name: "a"}}}
	SortProblems(list)
	if list[0].Object.Name != "a" || list[0].Severity != Error || list[2].Severity != Warning {
		t.Errorf("got %v", list)
	}
}
