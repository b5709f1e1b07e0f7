package clustertest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// The methods below are for tests that know no Kubernetes types.

// Object decodes an object of a resource from JSON.
func (s *Server) Object(resource, text string) Object {
	s.t.Helper()
	list := listOf(resource)
	if list == nil {
		s.t.Fatalf("there is no resource %q", resource)
	}
	// TypeMeta, ListMeta, Items.
	obj := reflect.New(reflect.TypeOf(list).Elem().Field(2).Type.Elem()).Interface().(Object)
	if err := json.Unmarshal([]byte(text), obj); err != nil {
		s.t.Fatal(err)
	}
	return obj
}

// PutJSON creates an object or replaces it.
func (s *Server) PutJSON(resource, text string) {
	s.t.Helper()
	s.Put(s.Object(resource, text))
}

// Has reports whether there is an object.
func (s *Server) Has(resource, namespace, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.objects[resource][namespace+"/"+name] != nil
}

// Watched reports whether somebody has begun to watch a resource.
func (s *Server) Watched(resource string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.requests, "GET "+resource+" watch")
}

// NodeSays returns a Node's annotations, and the status of its condition NetworkUnavailable, "" when it has none.
func (s *Server) NodeSays(name string) (annotations map[string]string, unavailable string) {
	n := Get[*corev1.Node](s, "", name)
	if n == nil {
		return nil, ""
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			unavailable = string(c.Status)
		}
	}
	return n.Annotations, unavailable
}

// Events returns all Events, one line "Service web: message" for each.
func (s *Server) Events() string {
	var b strings.Builder
	for _, e := range List[*corev1.Event](s) {
		fmt.Fprintf(&b, "%s %s: %s\n", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Message)
	}
	return b.String()
}
