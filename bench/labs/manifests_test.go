package labs

import (
	"testing"

	"tapestry.dev/tapestry/kube/manifests"
)

// The lab can read the manifests, and they hold what the Spec says.
func TestManifests(t *testing.T) {
	for _, tt := range []struct {
		spec                                 Spec
		nodes, pods, services, slices, certs int
	}{
		{Spec{Name: "small", Nodes: 1}, 1, 2, 1, 0, 0},
		{Spec{Name: "two", Nodes: 2}, 2, 3, 2, 0, 0},
		{Spec{Name: "web", Nodes: 1, Ingress: true}, 1, 2, 1, 0, 1},
		{Spec{Name: "many", Nodes: 1, Services: 2500}, 1, 2, 2501, 2500, 0},
	} {
		dir := t.TempDir()
		if err := tt.spec.check(); err != nil {
			t.Fatal(err)
		}
		if err := tt.spec.write(dir); err != nil {
			t.Fatal(err)
		}
		o, err := manifests.Read(dir)
		if err != nil {
			t.Fatalf("%s: %v", tt.spec.Name, err)
		}
		got := [...]int{len(o.Nodes), len(o.Pods), len(o.Services), o.EndpointSlices.Len(), len(o.Secrets)}
		if want := [...]int{tt.nodes, tt.pods, tt.services, tt.slices, tt.certs}; got != want || len(o.Ingresses) != tt.certs {
			t.Errorf("%s: nodes, pods, Services, EndpointSlices, Secrets are %v, want %v; %d Ingresses", tt.spec.Name, got, want, len(o.Ingresses))
		}
		for _, s := range o.EndpointSlices.All() {
			if len(s.Endpoints) != 2 || s.Endpoints[0].Addresses[0] == s.Endpoints[1].Addresses[0] {
				t.Errorf("%s: endpoints %v, want two", s.Name, s.Endpoints)
			}
		}
	}
	for _, s := range []Spec{{}, {Name: "x"}, {Name: "x", Nodes: 3}, {Name: "x", Nodes: 1, Services: -1}, {Name: "x", Nodes: 1, Services: maxServices + 1}} {
		if s.check() == nil {
			t.Errorf("%+v is taken", s)
		}
	}
}
