package e2e

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var restarts = flag.Int("restarts", 5, "how many `times` TestAddWhileAgentRestarts replaces the agent")

// TestAddWhileAgentRestarts: pods come and go on a node while its agent's pod is deleted again and again. All of them
// become Ready, which kubelet checks over the network, and none of them leaves anything behind.
func TestAddWhileAgentRestarts(t *testing.T) {
	const makers = 4
	n := state.Nodes[len(state.Nodes)-1]
	ns := namespace(t)
	// The first pod makes what every node makes once.
	if _, err := comeAndGo(t.Context(), netexec(ns, "first", n.Name)); err != nil {
		t.Fatal(err)
	}
	before := counts(t)
	maps.DeleteFunc(before, func(what string, _ count) bool { // of a process that no longer exists
		return strings.HasSuffix(what, "goroutines") || strings.Contains(what, "descriptors")
	})
	type result struct {
		took []time.Duration
		err  error
	}
	results := make(chan result, makers)
	enough, stop := context.WithCancel(t.Context())
	defer stop()
	for m := range makers {
		go func() {
			var r result
			for i := 0; r.err == nil && enough.Err() == nil; i++ {
				var took time.Duration
				took, r.err = comeAndGo(t.Context(), netexec(ns, fmt.Sprintf("maker-%d-%d", m, i), n.Name))
				r.took = append(r.took, took)
			}
			results <- r
		}()
	}
	began := time.Now()
	for range *restarts {
		replace(t, agents, n)
	}
	took := time.Since(began)
	stop()
	var all []time.Duration
	for range makers {
		r := <-results
		if r.err != nil {
			t.Error(r.err)
		}
		all = append(all, r.took...)
	}
	if t.Failed() {
		return
	}
	if len(all) < *restarts {
		t.Errorf("%d pods in %v say little of %d restarts", len(all), took, *restarts)
	}
	events, err := client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=FailedCreatePodSandBox"})
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, e := range events.Items {
		refused += int(max(1, e.Count))
	}
	figure(t, "the agent of %s was replaced %d times in %v, while %d pods came and went, %d at a time: all became Ready, after %v (median, %v at most); %d ADDs were refused and tried again",
		n.Name, *restarts, took.Round(time.Second), len(all), makers, median(all), slices.Max(all).Round(time.Millisecond), refused)
	asBefore(t, before)
}

// comeAndGo makes a pod, and deletes it when it is Ready. It returns how long the pod took to become Ready.
func comeAndGo(ctx context.Context, p *corev1.Pod) (time.Duration, error) {
	pods := client.CoreV1().Pods(p.Namespace)
	began := time.Now()
	if _, err := pods.Create(ctx, p, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		now, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
		switch {
		case err != nil:
			return 0, err
		case ready(now):
			return time.Since(began), pods.Delete(ctx, p.Name, metav1.DeleteOptions{})
		case time.Since(began) > soon:
			return 0, fmt.Errorf("pod %s is not Ready after %v: %s", p.Name, soon, describe(now))
		}
	}
}
