package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"tapestry.dev/tapestry/test/kubernetes/lab"
)

// TestNodeMadeAnew: a Node is deleted, and its kubelet makes it anew, with another range. Its agent is not ready, and
// tells first what new pods lack, with the remedy. After that new pods are served, and the old ones are told.
func TestNodeMadeAnew(t *testing.T) {
	n := state.Nodes[len(state.Nodes)-1]
	ns := namespace(t)
	pods := start(t, netexec(ns, "old", n.Name), netexec(ns, "far", state.Nodes[0].Name))
	now := makeAnew(t, n)
	agent := agentOf(t, n)
	eventually(t, soon, "what is lost is told", func() error {
		told := problems(t, n)
		if first := `[{"severity":"error","object":{"kind":"Node","name":"` + n.Name + `"},"message":"processes of this node, kubelet's probes among them`; !strings.HasPrefix(told, first) {
			return fmt.Errorf("the Node does not say first that its probes fail: %s", told)
		}
		for _, want := range []string{"the host TAP has the addresses", "kubectl -n kube-system delete pod " + agent.Name, "its address " + pods[0].Status.PodIP + " is from before"} {
			if !strings.Contains(told, want) {
				return fmt.Errorf("the Node does not say %q: %s", want, told)
			}
		}
		if got := readyz(t, n); !strings.Contains(got, "[-]host failed: processes of this node") {
			return fmt.Errorf("readyz says %s", got)
		}
		return unavailable(t, n)
	})
	// The remedies.
	if err := client.CoreV1().Pods("kube-system").Delete(t.Context(), agent.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "only the pod of the old range is left", func() error {
		if got := readyz(t, n); !strings.Contains(got, "[+]host ok") || !strings.Contains(got, "[-]pods failed") || !strings.Contains(got, ns+"/old") {
			return fmt.Errorf("readyz says %s", got)
		}
		return nil
	})
	more := start(t, netexec(ns, "new", n.Name))[0] // kubelet's probe passes
	served(t, now, pods[1], more)
	if err := client.CoreV1().Pods(ns).Delete(t.Context(), "old", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the node is well", func() error { return well(t, n) })
}

// TestNodeWithoutLabels: a Node is made anew without the labels that Tapestry's DaemonSets ask for, so that its keeper
// and its agent end together. When it is labelled again, what its pods have lost is told, and evictions heal it.
func TestNodeWithoutLabels(t *testing.T) {
	n := state.Nodes[len(state.Nodes)-1]
	// Selectors are taken away when this ends. kubelet would not start a pod again whose selector does not match.
	t.Run("selected", func(t *testing.T) { withoutLabels(t, n) })
	replace(t, keepers, n)
	eventually(t, soon, "the node is well", func() error { return well(t, n) })
}

func withoutLabels(t *testing.T, n lab.Node) {
	const label = "tapestry.dev/e2e"
	set := func(ctx context.Context, node, value string) error {
		_, err := client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, []byte(`{"metadata":{"labels":{"`+label+`":`+value+`}}}`), metav1.PatchOptions{})
		return err
	}
	t.Cleanup(func() {
		for _, n := range state.Nodes {
			if err := set(context.Background(), n.Name, "null"); err != nil {
				t.Error(err)
			}
		}
	})
	for _, n := range state.Nodes {
		if err := set(t.Context(), n.Name, `"yes"`); err != nil {
			t.Fatal(err)
		}
	}
	selected := func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{label: "yes"} }
	retemplate(t, "tapestry-keeper", func(p *corev1.PodTemplateSpec) { selected(&p.Spec) })
	allowEvictions(t, selected)
	ns := namespace(t)
	far := netexec(ns, "far", state.Nodes[0].Name)
	far.Labels["app"] = "far"
	far = start(t, far)[0]
	web := replicated(t, ns, n)

	now := makeAnew(t, n)
	eventually(t, soon, "keeper and agent end", func() error {
		for _, selector := range []string{agents, keepers} {
			list, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: selector, FieldSelector: "spec.nodeName=" + n.Name})
			if err != nil {
				return err
			}
			if len(list.Items) > 0 {
				return fmt.Errorf("%s is there", list.Items[0].Name)
			}
		}
		return nil
	})
	began := time.Now()
	if err := set(t.Context(), n.Name, `"yes"`); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "what is lost is told", func() error {
		told := problems(t, n)
		for _, want := range []string{`"name":"` + web.Name + `"`, "it has no network", "kubectl -n " + ns + " delete pod " + web.Name} {
			if !strings.Contains(told, want) {
				return fmt.Errorf("the Node does not say %q: %s", want, told)
			}
		}
		if got := readyz(t, n); !strings.Contains(got, "[-]pods failed") || !strings.Contains(got, ns+"/"+web.Name) {
			return fmt.Errorf("readyz says %s", got)
		}
		return nil
	})
	var more *corev1.Pod
	eventually(t, 3*soon, "the pod is made anew", func() (err error) {
		if more, err = only(t, n, ns, "app=netexec"); err == nil && more.UID == web.UID {
			err = errors.New("it is the same")
		}
		return err
	})
	served(t, now, far, more)
	eventually(t, soon, "the node is well", func() error { return errors.Join(well(t, n), ingressOf(t, n)) })
	figure(t, "%s made anew without the DaemonSets' labels: its pod and Ingress are back %v after it is labelled, with healing.evictPods", n.Name, time.Since(began).Round(time.Second))
}

// makeAnew deletes a Node and kills its kubelet, which registers the Node when it starts again, until the Node has
// another range than before. It returns that one.
func makeAnew(t *testing.T, n lab.Node) *corev1.Node {
	t.Helper()
	was, err := client.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 { // the control plane may give the range that has just become free
		now := makeAnewOnce(t, n, was.UID)
		if !slices.Equal(now.Spec.PodCIDRs, was.Spec.PodCIDRs) {
			return now
		}
		was.UID = now.UID
	}
	t.Fatalf("the ranges of %s are %v as before", n.Name, was.Spec.PodCIDRs)
	return nil
}

// makeAnewOnce returns the Node in place of the one with that UID.
func makeAnewOnce(t *testing.T, n lab.Node, uid types.UID) (now *corev1.Node) {
	t.Helper()
	if err := client.CoreV1().Nodes().Delete(t.Context(), n.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := onNode(t.Context(), n.Name, "sh", "-c", `for p in /proc/[0-9]*; do
		case "$(tr '\0' ' ' <"$p/cmdline" 2>/dev/null)" in /*"/kubelet --config="*) kill -KILL "${p#/proc/}";; esac
	done`)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the Node is made anew", func() (err error) {
		now, err = client.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
		if err == nil && (now.UID == uid || len(now.Spec.PodCIDRs) == 0) {
			err = fmt.Errorf("it has UID %s and the ranges %v", now.UID, now.Spec.PodCIDRs)
		}
		return err
	})
	return now
}

// served checks that a pod has an address in its Node's range, and that another pod reaches it.
func served(t *testing.T, n *corev1.Node, from, to *corev1.Pod) {
	t.Helper()
	_, ours, err := net.ParseCIDR(n.Spec.PodCIDRs[0])
	if err != nil {
		t.Fatal(err)
	}
	if !ours.Contains(net.ParseIP(to.Status.PodIP)) {
		t.Errorf("the pod has the address %s, and the range of %s is %s", to.Status.PodIP, n.Name, ours)
	}
	eventually(t, soon, "the pod answers "+from.Spec.NodeName, func() error {
		out, err := inPod(t.Context(), from, curl("http://"+net.JoinHostPort(to.Status.PodIP, "8080")+"/hostname")...)
		if err == nil && out != to.Name {
			err = fmt.Errorf("%q answers", out)
		}
		return err
	})
}

// unavailable checks that a Node keeps new pods away.
func unavailable(t *testing.T, n lab.Node) error {
	now, err := client.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range now.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("the conditions of %s are %v", n.Name, now.Status.Conditions)
}

// well checks that all of a node's health is well, and that nothing is told.
func well(t *testing.T, n lab.Node) error {
	if got := readyz(t, n); strings.Contains(got, "[-]") || !strings.Contains(got, "[+]pods ok") {
		return fmt.Errorf("readyz says %s", got)
	}
	if told := problems(t, n); told != "[]" && told != "" {
		return fmt.Errorf("the Node says %s", told)
	}
	return nil
}
