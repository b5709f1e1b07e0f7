package apiserver_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/test/await"
)

// forbidden is what an API server says to somebody who lacks a right, of whatever object, whether it is there or not.
const forbidden = "forbidden"

// request is what a user asks for, and what is to come of it.
type request struct {
	what, verb, path string
	body             any
	refused          string // part of the refusal; "" for what has to work
}

// differs makes a request and says what came otherwise, or "".
func (p client) differs(r request) string {
	err := p.call(r.verb, r.path, r.body, nil)
	switch {
	case r.refused == "" && err != nil:
		return fmt.Sprintf("%s has to work: %v", r.what, err)
	case r.refused != "" && err == nil:
		return fmt.Sprintf("%s: %s %s works, want %q", r.what, r.verb, r.path, r.refused)
	case r.refused != "" && !strings.Contains(err.Error(), r.refused):
		return fmt.Sprintf("%s: %v, want %q", r.what, err, r.refused)
	}
	return ""
}

// all makes requests, one after the other, and reports what came otherwise.
func (p client) all(t *testing.T, list ...request) {
	t.Helper()
	for _, r := range list {
		if wrong := p.differs(r); wrong != "" {
			t.Error(wrong)
		}
	}
}

// TestControllerRights: what the controller's token may do on a real API server is read what it decides by, write
// status, tell Events and hold its own Lease, and nothing else: no spec, no pods, no Secrets, nobody else's Lease.
func TestControllerRights(t *testing.T) {
	const (
		slices    = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
		ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses"
		leases    = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
		egress    = "/apis/tapestry.dev/v1alpha1/egressaddresses"
	)
	p := start(t)
	p.controllerRights()
	p.node("n1", "192.0.2.1")
	p.must(http.MethodPost, services, service("web"), nil)
	p.must(http.MethodPost, addressPools, addressPool("own", v1alpha1.AddressPoolSpec{Addresses: []string{"198.51.100.7"}}), nil)
	p.must(http.MethodPost, ingresses, networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: networkingv1.IngressSpec{DefaultBackend: &networkingv1.IngressBackend{
			Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}}}},
	}, nil)
	c := p.as(p.credentialsOf("tapestry-controller", "n1"))
	await.Until(t, "the rights are in force", func() bool { return c.call(http.MethodGet, "/api/v1/services", nil, nil) == nil })

	for _, path := range []string{
		"/api/v1/nodes", "/api/v1/namespaces", "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices",
		"/apis/networking.k8s.io/v1/ingresses", "/apis/networking.k8s.io/v1/ingressclasses", "/apis/networking.k8s.io/v1/servicecidrs",
		addressPools, egress,
	} {
		c.all(t, request{"to read what it decides by", http.MethodGet, path, nil, ""})
	}
	for _, plural := range []string{"l2advertisements", "bgppeers", "bgpadvertisements"} {
		path := "/apis/tapestry.dev/v1alpha1/" + plural
		c.all(t,
			request{"to read " + plural, http.MethodGet, path, nil, ""},
			request{"the status of one of " + plural + ", of which there is none", http.MethodPatch, path + "/none/status", map[string]any{}, "not found"},
			request{"the spec of one", http.MethodPatch, path + "/none", map[string]any{}, forbidden},
			request{"one of " + plural + " goes", http.MethodDelete, path + "/none", nil, forbidden},
		)
	}
	balancer := map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]string{"ip": "192.0.2.1"}}}}}
	lease := func(name string) any { return map[string]any{"metadata": map[string]string{"name": name}} }
	c.all(t,
		request{"the status of a Service", http.MethodPatch, services + "/web/status", map[string]any{"status": map[string]any{"conditions": []any{}}}, ""},
		request{"the status of an Ingress", http.MethodPatch, ingresses + "/web/status", balancer, ""},
		request{"the status of a pool", http.MethodPatch, addressPools + "/own/status", map[string]any{"status": map[string]any{"assigned": 1}}, ""},
		request{"the status of an EgressAddress, of which there is none", http.MethodPatch, egress + "/none/status", map[string]any{}, "not found"},
		request{"Events", http.MethodPost, "/api/v1/namespaces/default/events", map[string]any{
			"metadata": map[string]string{"name": "told"}, "reason": "Told", "type": "Warning",
			"involvedObject": map[string]string{"kind": "Service", "namespace": "default", "name": "web"},
		}, ""},
		request{"its Lease is made", http.MethodPost, leases, lease("tapestry-controller"), ""},
		request{"its Lease", http.MethodGet, leases + "/tapestry-controller", nil, ""},
	)
	var held map[string]any
	p.must(http.MethodGet, leases+"/tapestry-controller", nil, &held)
	p.must(http.MethodPost, leases, lease("another"), nil)

	spec := map[string]any{"spec": map[string]any{"externalIPs": []string{"192.0.2.99"}}}
	c.all(t,
		request{"its Lease is held", http.MethodPut, leases + "/tapestry-controller", held, ""},
		request{"another Lease", http.MethodGet, leases + "/another", nil, forbidden},
		request{"another Lease is held", http.MethodPut, leases + "/another", lease("another"), forbidden},
		request{"Leases", http.MethodGet, leases, nil, forbidden},
		request{"its Lease goes", http.MethodDelete, leases + "/tapestry-controller", nil, forbidden},
		request{"a Lease of another namespace", http.MethodPost, "/apis/coordination.k8s.io/v1/namespaces/default/leases", lease("x"), forbidden},

		request{"the spec of a Service", http.MethodPatch, services + "/web", spec, forbidden},
		request{"Services are made", http.MethodPost, services, service("x"), forbidden},
		request{"Services go", http.MethodDelete, services + "/web", nil, forbidden},
		request{"the spec of an Ingress", http.MethodPatch, ingresses + "/web", map[string]any{"spec": map[string]any{}}, forbidden},
		request{"Ingresses go", http.MethodDelete, ingresses + "/web", nil, forbidden},
		request{"the spec of a pool", http.MethodPatch, addressPools + "/own", map[string]any{"spec": map[string]any{"addresses": []string{"192.0.2.1"}}}, forbidden},
		request{"pools are made", http.MethodPost, addressPools, addressPool("x", v1alpha1.AddressPoolSpec{Addresses: []string{"192.0.2.1"}}), forbidden},
		request{"pools go", http.MethodDelete, addressPools + "/own", nil, forbidden},
		request{"the spec of an EgressAddress", http.MethodPatch, egress + "/none", map[string]any{}, forbidden},
		request{"endpoints are made", http.MethodPost, slices, map[string]any{"metadata": map[string]string{"name": "x"}, "addressType": "IPv4", "endpoints": []any{}}, forbidden},
		request{"endpoints go", http.MethodDelete, slices + "/x", nil, forbidden},

		request{"Nodes", http.MethodPatch, "/api/v1/nodes/n1", keyPatch("stolen"), forbidden},
		request{"the status of Nodes", http.MethodPatch, "/api/v1/nodes/n1/status", map[string]any{"status": map[string]any{}}, forbidden},
		request{"Nodes go", http.MethodDelete, "/api/v1/nodes/n1", nil, forbidden},
		request{"Namespaces", http.MethodPatch, "/api/v1/namespaces/default", map[string]any{"metadata": map[string]any{"labels": map[string]string{"a": "b"}}}, forbidden},
		request{"pods are read", http.MethodGet, "/api/v1/pods", nil, forbidden},
		request{"pods are made", http.MethodPost, "/api/v1/namespaces/default/pods", map[string]any{"metadata": map[string]string{"name": "x"}}, forbidden},
		request{"pods go", http.MethodDelete, "/api/v1/namespaces/kube-system/pods/tapestry-controller-n1", nil, forbidden},
		request{"Secrets", http.MethodGet, "/api/v1/secrets", nil, forbidden},
		request{"a Secret by name", http.MethodGet, "/api/v1/namespaces/kube-system/secrets/tapestry-bgp", nil, forbidden},
		request{"ConfigMaps", http.MethodGet, "/api/v1/namespaces/kube-system/configmaps", nil, forbidden},
		request{"tokens of agents", http.MethodPost, "/api/v1/namespaces/kube-system/serviceaccounts/tapestry/token", map[string]any{"spec": map[string]any{}}, forbidden},
		request{"rights", http.MethodPatch, "/apis/rbac.authorization.k8s.io/v1/clusterroles/tapestry-controller", map[string]any{"rules": []any{}}, forbidden},
		request{"the guard of Nodes goes", http.MethodDelete, paths["ValidatingAdmissionPolicyBinding"] + "tapestry-agent-own-node", nil, forbidden},
	)
}
