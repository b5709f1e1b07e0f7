package egress_test

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/advertise"
	"tapestry.dev/tapestry/kube/egress"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
)

// A pod that uses no egress address changes no Plan. All nodes that are selected can be the gateway.
func TestPodOfAnotherNamespace(t *testing.T) {
	objs := kube.Objects{EgressAddresses: []*v1alpha1.EgressAddress{{
		ObjectMeta: metav1.ObjectMeta{Name: "shop"},
		Spec:       v1alpha1.EgressAddressSpec{Addresses: []string{"203.0.113.50"}, Namespaces: []string{"shop"}},
	}}}
	for _, name := range []string{"n1", "n2", "n3", "n4", "n5", "n6"} {
		objs.Nodes = append(objs.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	var pods egress.Stage
	var plans advertise.Stage
	plan := func() any {
		r := pods.Of("n1", &objs, nil, new(kube.Report))
		p := plans.Of("n1", &objs, roll.List[*services.Service]{}, r.Links, new(kube.Report))
		if len(p.Links) != 1 || len(p.Links[0].Ranked) != len(objs.Nodes) {
			t.Fatalf("the links are %+v, want one that all %d nodes can announce", p.Links, len(objs.Nodes))
		}
		return p
	}
	before := plan()
	objs.Pods = append(slices.Clone(objs.Pods), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "a"}, Spec: corev1.PodSpec{NodeName: "n1"}})
	if plan() != before {
		t.Error("a pod of another namespace made another plan")
	}
}
