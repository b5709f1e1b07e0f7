package translate

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A change of a Service that nobody uses keeps both lists: the Services and the names. A change that does not concern
// the name keeps the list of names.
func TestServicesThatOnlyLookNew(t *testing.T) {
	objs := manyPaths(t, 10)
	o := Options{Node: "n0"}
	var m Translator
	before := m.Translate(objs, o)
	edit := func(f func(*corev1.Service)) Result {
		next := objs
		next.Services = nil
		for _, s := range objs.Services {
			s = s.DeepCopy()
			f(s)
			next.Services = append(next.Services, s)
		}
		return m.Translate(next, o)
	}
	check := func(when string, r Result, services, names bool) {
		t.Helper()
		if got := r.Services.Services.Same(before.Services.Services); got != services {
			t.Errorf("%s: the Services are the same list: %v, want %v", when, got, services)
		}
		if got := identity(r.DNS.Services) == identity(before.DNS.Services); got != names {
			t.Errorf("%s: the names are the same list: %v, want %v", when, got, names)
		}
	}
	check("annotated", edit(func(s *corev1.Service) { s.Annotations = map[string]string{"a": "b"} }), true, true)
	check("not ready", edit(func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }), false, true)
	check("another port", edit(func(s *corev1.Service) { s.Spec.Ports[0].Port = 81 }), false, false)
	if got, want := m.Translate(objs, o), Translate(objs, o); !reflect.DeepEqual(got, want) {
		t.Error("what was changed back is not as it was")
	}
}
