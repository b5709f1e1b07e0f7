package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// TestPodStart measures how long pods, started one after the other, take until they have their network and until they
// are Ready. The figures depend on the machine. The bridge plugin's figures, in a lab with "klab apply -reference", are
// for comparison.
func TestPodStart(t *testing.T) {
	const count = 10
	ns := namespace(t)
	var network, all []time.Duration
	for i := range count {
		p := netexec(ns, fmt.Sprintf("start-%d", i), state.Nodes[i%len(state.Nodes)].Name)
		p.Spec.Containers[0].Args = []string{"pause"}
		p.Spec.Containers[0].ReadinessProbe = nil
		began := time.Now()
		w, err := client.CoreV1().Pods(ns).Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + p.Name})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		networkAt, readyAt := starting(t, w)
		network, all = append(network, networkAt.Sub(began)), append(all, readyAt.Sub(began))
	}
	figure(t, "a pod has its network after %v (median of %d, %v at most), and is Ready after %v (%v at most)",
		median(network), count, slices.Max(network).Round(time.Millisecond), median(all), slices.Max(all).Round(time.Millisecond))
	if m := median(all); m > 10*time.Second {
		t.Errorf("half of the pods took more than %v", m)
	}
}

// starting returns the times at which the pod had its network, and at which it was Ready.
func starting(t *testing.T, w watch.Interface) (network, isReady time.Time) {
	t.Helper()
	defer w.Stop()
	deadline := time.After(soon)
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatal("the watch has ended")
			}
			p, ok := e.Object.(*corev1.Pod)
			if !ok {
				t.Fatalf("watch: %v", e.Object)
			}
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionTrue && network.IsZero() {
					network = time.Now()
				}
			}
			if ready(p) {
				if network.IsZero() {
					t.Fatal("the pod is Ready, and kubelet said nothing of its network")
				}
				return network, time.Now()
			}
		case <-deadline:
			t.Fatalf("the pod is not Ready after %v", soon)
		}
	}
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2].Round(time.Millisecond)
}
