package apiserver_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/evict"
	"tapestry.dev/tapestry/test/await"
)

// TestEvict: an agent may evict pods only with the right that the chart adds for it, a PodDisruptionBudget counts, and
// a pod that was made anew meanwhile stays.
func TestEvict(t *testing.T) {
	p := start(t)
	p.rights()
	p.node("n1", "192.168.1.1")
	owner := true
	web := p.pod("n1", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: "web", Labels: map[string]string{"app": "web"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: "Shop", Name: "s", UID: "0b5f1d3e-0000-4000-8000-000000000001", Controller: &owner}},
	}}, "10.244.1.3")
	a := newAgent(t, p, "n1")
	ref := kube.Ref{Kind: "Pod", Namespace: "default", Name: "web"}
	a.sees("the pod, and that it has a controller", func(objs *kube.Objects, _ []kube.Problem) bool {
		for _, pod := range objs.Pods {
			if c := metav1.GetControllerOf(pod); pod.Name == "web" && c != nil && c.Kind == "Shop" {
				return true
			}
		}
		return false
	})
	deleted := func() bool {
		var now corev1.Pod
		return p.call(http.MethodGet, "/api/v1/namespaces/default/pods/web", nil, &now) != nil || now.DeletionTimestamp != nil
	}
	if err := a.Evict(t.Context(), ref, string(web.UID)); err == nil || !strings.Contains(err.Error(), "forbidden") || deleted() {
		t.Fatalf("without the right: %v, deleted %v", err, deleted())
	}
	p.must(http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/clusterroles", rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "evict"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods/eviction"}, Verbs: []string{"create"}}},
	}, nil)
	p.must(http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "evict"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "evict"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "tapestry"}},
	}, nil)
	all := intstr.FromString("100%")
	p.must(http.MethodPost, "/apis/policy/v1/namespaces/default/poddisruptionbudgets", policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &all, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
	}, nil)
	await.Until(t, "the right counts, and the budget", func() bool {
		return errors.Is(a.Evict(t.Context(), ref, string(web.UID)), evict.ErrBudget)
	})
	p.must(http.MethodDelete, "/apis/policy/v1/namespaces/default/poddisruptionbudgets/web", nil, nil)
	if err := a.Evict(t.Context(), ref, "0b5f1d3e-0000-4000-8000-000000000002"); err != nil || deleted() {
		t.Errorf("another pod of that name: %v, deleted %v", err, deleted())
	}
	await.Until(t, "the pod is evicted", func() bool {
		return a.Evict(t.Context(), ref, string(web.UID)) == nil && deleted()
	})
	if err := a.Evict(t.Context(), kube.Ref{Kind: "Pod", Namespace: "default", Name: "none"}, "x"); err != nil {
		t.Errorf("a pod that is gone: %v", err)
	}
}
