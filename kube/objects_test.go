package kube

import (
	discoveryv1 "k8s.io/api/discovery/v1"
	"slices"
	"strings"
	"tapestry.dev/tapestry/roll"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// Every function that loops over the kinds must handle all of them.
func TestEveryKind(t *testing.T) {
	var all Builder
	held := 0
	for _, k := range Kinds() {
		if k.Held() {
			held++
		}
	}
	for _, name := range []string{"b", "a"} {
		for _, k := range Kinds() {
			if !k.Held() {
				continue
			}
			obj := k.New()
			obj.SetNamespace("x")
			obj.SetName(name)
			if !all.Add(obj, "file:"+name) || RefOf(obj).Kind != k.Name || KindOf(obj) != k {
				t.Fatalf("there is no place for %s", k.Name)
			}
		}
	}
	objs := all.Objects()
	if objs.Len() != 2*held || len(objs.Origin) != 2*held {
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
	objs.Withheld, objs.Awaited = []Ref{{"Secret", "x", "y"}}, []Ref{{"Secret", "x", "z"}}
	for what, got := range map[string]Objects{"Clone": objs.Clone(), "Sorted": objs.Sorted(&Objects{})} {
		if !slices.Equal(got.Withheld, objs.Withheld) || !slices.Equal(got.Awaited, objs.Awaited) {
			t.Errorf("%s forgets what is withheld or awaited", what)
		}
	}
	copies := objs.Map(func(obj Object) Object { return obj.DeepCopyObject().(Object) })
	if diff := cmp.Diff(objs, copies, cmp.AllowUnexported(roll.List[*discoveryv1.EndpointSlice]{}, roll.List[*OtherPod]{})); diff != "" {
		t.Errorf("the copies are others (-objects +copies):\n%s", diff)
	}
	same := map[Object]bool{}
	for obj := range objs.All() {
		same[obj] = true
	}
	for obj := range copies.All() {
		if same[obj] {
			t.Errorf("%s is not a copy", RefOf(obj))
		}
	}
	merged, err := Merge(objs, clone)
	if merged.Len() != 2*held || strings.Count(err.Error(), "already defined at") != 2*held {
		t.Errorf("merged %d objects, error %v", merged.Len(), err)
	}
	back, ok := clone.Replace(&clone, &Objects{})
	if !ok || back.Len() != 0 || len(back.Origin) != 0 {
		t.Errorf("all taken away, %d objects and %d origins are left", back.Len(), len(back.Origin))
	}
	if again, ok := back.Replace(&Objects{}, &clone); !ok || !cmp.Equal(again, clone, cmp.AllowUnexported(roll.List[*discoveryv1.EndpointSlice]{}, roll.List[*OtherPod]{})) {
		t.Error("put back, they are others")
	}
}

func TestAddRefusesOthers(t *testing.T) {
	var all Builder
	added, objs := all.Add(&corev1.Event{}, "f:1"), all.Objects()
	if added || objs.Len() != 0 || len(objs.Origin) != 0 {
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
