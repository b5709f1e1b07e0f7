package cluster

import (
	"errors"
	"net/http"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/kube/cluster/evict"
	"tapestry.dev/tapestry/test/await"
)

// TestEvict asks for evictions that are allowed, that a budget forbids, that nobody may ask for, and of pods that are
// gone.
func TestEvict(t *testing.T) {
	s := clustertest.New(t)
	s.Put(node("n1"), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.PodSpec{NodeName: "n1"}})
	v := see(t, s)
	v.untilNames("Node n1, Pod default/web")
	web := kube.Ref{Kind: "Pod", Namespace: "default", Name: "web"}
	there := func() *corev1.Pod { return clustertest.Get[*corev1.Pod](s, "default", "web") }
	uid := string(there().UID)

	for _, c := range []struct {
		status int
		budget bool
	}{{http.StatusTooManyRequests, true}, {http.StatusForbidden, false}} {
		s.Answer("evictions", c.status)
		if err := v.Evict(t.Context(), web, string(there().UID)); err == nil || errors.Is(err, evict.ErrBudget) != c.budget {
			t.Errorf("answered %d: %v", c.status, err)
		}
	}
	s.Answer("evictions", 0)
	if err := v.Evict(t.Context(), web, "another"); err != nil || there() == nil {
		t.Errorf("a pod of that name that is another one: %v, left %v", err, there())
	}
	for range 2 { // the second time it is gone
		if err := v.Evict(t.Context(), web, uid); err != nil {
			t.Error(err)
		}
		await.Until(t, "the pod is gone", func() bool { return there() == nil })
	}
	asked := slices.DeleteFunc(s.Requests(), func(r string) bool { return r != "POST pods/web/eviction" })
	if len(asked) != 5 {
		t.Errorf("asked %q: every refusal is to be told at once, and nothing tried again", asked)
	}
}
