package controller_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/controller"
)

func TestIngressStatus(t *testing.T) {
	node := func(name string, annotations map[string]string, addrs ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}
		for _, a := range addrs {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		return n
	}
	ingress := func(name, class string) *networkingv1.Ingress {
		return &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: networkingv1.IngressSpec{IngressClassName: &class}}
	}
	in := kube.Objects{
		Nodes: []*corev1.Node{
			node("n1", nil, "192.168.0.1", "fd00::1"), node("n2", nil, "192.168.0.2"),
			node("stock", map[string]string{kube.StockAnnotation: "true"}, "192.168.0.3"), // serves no Ingress
		},
		Ingresses: []*networkingv1.Ingress{ingress("ours", "tapestry"), ingress("theirs", "nginx")},
	}
	before := allJSON(t, in)
	out := controller.IngressStatus(in)
	if allJSON(t, in) != before {
		t.Error("the input has been changed")
	}
	var got []string
	for _, at := range out.Ingresses[0].Status.LoadBalancer.Ingress {
		got = append(got, at.IP)
	}
	if want := []string{"192.168.0.1", "192.168.0.2", "fd00::1"}; !slices.Equal(got, want) {
		t.Errorf("ours is served at %v, want %v", got, want)
	}
	if out.Ingresses[1] != in.Ingresses[1] {
		t.Error("the Ingress of another class was touched")
	}
	if again := controller.IngressStatus(out); again.Ingresses[0] != out.Ingresses[0] {
		t.Error("an Ingress that says so already was copied")
	}
	in.Nodes = nil
	if got := controller.IngressStatus(in).Ingresses[0].Status.LoadBalancer.Ingress; len(got) != 0 {
		t.Errorf("without nodes it is served at %v", got)
	}
}

// allJSON returns all objects as text, to compare.
func allJSON(t testing.TB, objs kube.Objects) string {
	var b strings.Builder
	for obj := range objs.All() {
		doc, err := json.Marshal(obj)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(doc)
	}
	return b.String()
}
