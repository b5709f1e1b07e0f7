package translate

import (
	"slices"
	"strings"
	"tapestry.dev/tapestry/roll"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
)

// An endpoint at a load balancer's address and a port of its Service leads back, and is left out and told. So is one at
// a node's address that is a load balancer's: the node listens there itself.
func TestEndpointAtLoadBalancer(t *testing.T) {
	port, dns := int32(80), int32(53)
	objs := kube.Objects{
		Nodes: []*corev1.Node{{
			ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}},
		}},
		Services: []*corev1.Service{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "round"},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Name: "p", Port: 80}, {Name: "q", Port: 81}}},
			Status:     corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.7"}, {IP: "192.0.2.1"}}}},
		}},
		EndpointSlices: roll.Of(&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "x", Name: "round", Labels: map[string]string{discoveryv1.LabelServiceName: "round"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: &[]string{"p"}[0], Port: &port}, {Name: &[]string{"q"}[0], Port: &dns}},
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"203.0.113.7"}}, {Addresses: []string{"192.0.2.1"}}, {Addresses: []string{"203.0.113.8"}}},
		}),
	}
	r := Translate(objs, Options{Node: "n"})
	var got []string
	for _, e := range r.Services.Services.At(0).Endpoints {
		for _, p := range e.Ports {
			got = append(got, e.Addr.String()+" "+p.Name)
		}
	}
	if want := []string{"192.0.2.1 q", "203.0.113.7 q", "203.0.113.8 p", "203.0.113.8 q"}; !slices.Equal(got, want) {
		t.Errorf("the endpoints are %q, want %q", got, want)
	}
	for _, at := range []string{"203.0.113.7", "192.0.2.1"} {
		want := at + " 80/TCP is the address of a load balancer for Service x/round"
		if !slices.ContainsFunc(r.Problems, func(p kube.Problem) bool { return strings.Contains(p.Message, want) }) {
			t.Errorf("%q is not told, but %v", want, r.Problems)
		}
	}
}
