package cluster

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// That a running pod begins to terminate is urgent, once for each pod. Nothing else that happens to a pod is.
func TestUrgent(t *testing.T) {
	const addr = "10.1.0.7"
	now := metav1.NewTime(time.Unix(1, 0))
	pod := func(phase corev1.PodPhase, addr string, ends *metav1.Time) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "web", DeletionTimestamp: ends}, Status: corev1.PodStatus{Phase: phase, PodIP: addr},
		}
	}
	for name, row := range map[string]struct {
		pods   []*corev1.Pod
		urgent bool
	}{
		"a running pod terminates":      {[]*corev1.Pod{pod(corev1.PodRunning, addr, nil), pod(corev1.PodRunning, addr, &now)}, true},
		"one that was never started":    {[]*corev1.Pod{pod(corev1.PodPending, "", nil), pod(corev1.PodPending, "", &now)}, false},
		"one that has ended":            {[]*corev1.Pod{pod(corev1.PodSucceeded, addr, nil), pod(corev1.PodSucceeded, addr, &now)}, false},
		"one starts":                    {[]*corev1.Pod{pod(corev1.PodPending, "", nil), pod(corev1.PodRunning, addr, nil)}, false},
		"one terminates when it comes":  {[]*corev1.Pod{pod(corev1.PodRunning, addr, &now)}, false},
		"one that terminates has ended": {[]*corev1.Pod{pod(corev1.PodRunning, addr, &now), pod(corev1.PodSucceeded, addr, &now)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := &Cluster{urgent: make(chan struct{}, 1)}
			s := newStore[*corev1.Pod](nil, func() {})
			s.next = c.hasten
			for _, p := range row.pods {
				if err := s.Add(p); err != nil {
					t.Fatal(err)
				}
			}
			if got := len(c.Urgent()) == 1; got != row.urgent {
				t.Errorf("urgent: %t, want %t", got, row.urgent)
			}
		})
	}
}
