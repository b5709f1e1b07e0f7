package control

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// sliceOf is a slice of a Service with endpoints on nodes, all ready but for the last one.
func sliceOf(service string, nodes ...string) *discoveryv1.EndpointSlice {
	es := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service, "other": "x"}}}
	for i := range nodes {
		ready := i < len(nodes)-1
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, NodeName: &nodes[i], Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{"192.0.2.1"}})
	return es
}

func reduced(t *testing.T, es *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	t.Helper()
	out, err := reduce(es)
	if err != nil {
		t.Fatal(err)
	}
	return out.(*discoveryv1.EndpointSlice)
}

// Of a slice each node stays once for each state, and nothing else of it.
func TestReducedSlice(t *testing.T) {
	es := reduced(t, sliceOf("local", "n1", "n1", "n2", "n1", "n1"))
	got := ""
	for _, e := range es.Endpoints {
		got += *e.NodeName + map[bool]string{true: " ready, ", false: " not, "}[*e.Conditions.Ready]
		if len(e.Addresses) > 0 {
			t.Errorf("addresses stay: %v", e.Addresses)
		}
	}
	if want := "n1 ready, n2 ready, n1 not, "; got != want || len(es.Labels) != 1 || len(es.Ports) > 0 {
		t.Errorf("got %s, labels %v, ports %v, want %s", got, es.Labels, es.Ports, want)
	}
}

// All is decided anew for changes of those slices alone by which something is decided.
func TestSlicesThatDecide(t *testing.T) {
	r := &reader{wake: make(chan struct{}, 1), services: cache.NewStore(cache.MetaNamespaceKeyFunc)}
	for name, spec := range map[string]corev1.ServiceSpec{
		"local":   {Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal},
		"cluster": {Type: corev1.ServiceTypeLoadBalancer},
		"port":    {Type: corev1.ServiceTypeNodePort, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal},
	} {
		if err := r.services.Add(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name}, Spec: spec}); err != nil {
			t.Fatal(err)
		}
	}
	of := func(service string, nodes ...string) *discoveryv1.EndpointSlice {
		return reduced(t, sliceOf(service, nodes...))
	}
	for name, tc := range map[string]struct {
		old, now any
		want     bool
	}{
		"another kind":             {nil, &corev1.Node{}, true},
		"comes":                    {nil, of("local", "n1", "n1"), true},
		"goes":                     {of("local", "n1", "n1"), nil, true},
		"goes, of what was missed": {cache.DeletedFinalStateUnknown{}, nil, true},
		"the same nodes":           {of("local", "n1", "n1"), of("local", "n1", "n1", "n1"), false},
		"another node":             {of("local", "n1", "n1"), of("local", "n2", "n1"), true},
		"of none that is local":    {nil, of("cluster", "n1"), false},
		"of no load balancer":      {nil, of("port", "n1"), false},
		"of no Service":            {nil, of("none", "n1"), false},
		"of another Service":       {of("cluster", "n1"), of("local", "n1"), true},
		"of a local one no longer": {of("local", "n1"), of("cluster", "n1"), true},
	} {
		r.changed(tc.old, tc.now)
		got := false
		select {
		case <-r.wake:
			got = true
		default:
		}
		if got != tc.want {
			t.Errorf("%s: decided anew is %t, want %t", name, got, tc.want)
		}
	}
}
