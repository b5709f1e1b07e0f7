package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"tapestry.dev/tapestry/test/kubernetes/lab"
)

// TestKeeperAndAgentKilled kills the keeper and the agent of a node at once. The host TAP comes back by itself, so that
// new pods pass their probes. What is lost is named, with the commands that get it back, and they do.
func TestKeeperAndAgentKilled(t *testing.T) {
	n := state.Nodes[len(state.Nodes)-1]
	ns := namespace(t)
	old := start(t, netexec(ns, "old", n.Name))[0]
	ingress := func() error { return ingressOf(t, n) }
	eventually(t, soon, "Ingress", ingress)

	killBoth(t, n)
	eventually(t, soon, "what is lost is told", func() error {
		told := problems(t, n)
		for _, want := range []string{
			"Ingress is not served at :80", "kubectl -n kube-system delete pod tapestry-", `"name":"old"`, "it has no network", "make it anew; it has no controller",
		} {
			if !strings.Contains(told, want) {
				return fmt.Errorf("the Node does not say %q: %s", want, told)
			}
		}
		if got := readyz(t, n); !strings.Contains(got, "[-]host failed: Ingress is not served at :80") {
			return fmt.Errorf("readyz says %s", got)
		}
		events, err := client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=old,source=tapestry"})
		if err == nil && len(events.Items) == 0 {
			err = fmt.Errorf("there is no Event on the pod")
		}
		return err
	})
	// The host TAP is back: kubelet's probe of a new pod passes, and the node still takes pods.
	more := start(t, netexec(ns, "new", n.Name))[0]
	if more.Status.PodIP == old.Status.PodIP {
		t.Errorf("the new pod has the address %s of the old one, which runs", old.Status.PodIP)
	}

	// The remedies.
	if err := client.CoreV1().Pods(ns).Delete(t.Context(), "old", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "no pod is missed any more", func() error {
		if told := problems(t, n); strings.Contains(told, "it has no network") {
			return fmt.Errorf("the Node says %s", told)
		}
		return nil
	})
	replace(t, agents, n)
	eventually(t, soon, "Ingress", ingress)
	eventually(t, soon, "the node is ready", func() error {
		if got := readyz(t, n); strings.Contains(got, "[-]") || !strings.Contains(got, "[+]pods ok") {
			return fmt.Errorf("readyz says %s", got)
		}
		return nil
	})
	if _, err := inPod(t.Context(), more, "true"); err != nil {
		t.Error(err)
	}
}

// TestEvictionHeals kills the keeper and the agent of a node at once, with what the chart's healing.evictPods adds.
// Nobody does anything: the pod that has a controller is made anew, the agent's own pod too, and all is well.
func TestEvictionHeals(t *testing.T) {
	allowEvictions(t)
	n := state.Nodes[len(state.Nodes)-1]
	ns := namespace(t)
	web := replicated(t, ns, n)
	agent := agentOf(t, n)
	killBoth(t, n)
	began := time.Now()
	eventually(t, 6*time.Minute, "all is well again", func() error {
		now, err := only(t, n, ns, "app=netexec")
		if err != nil {
			return err
		}
		next, err := only(t, n, "kube-system", agents)
		if err != nil {
			return err
		}
		if now.UID == web.UID || next.UID == agent.UID {
			return fmt.Errorf("the pod was made anew: %v, the agent's: %v", now.UID != web.UID, next.UID != agent.UID)
		}
		return ingressOf(t, n)
	})
	figure(t, "keeper and agent of %s killed at once, with healing.evictPods: its pod and Ingress are back after %v", n.Name, time.Since(began).Round(time.Second))
}

// replicated makes a ReplicaSet of one netexec on the node, and returns its pod when it is Ready.
func replicated(t *testing.T, ns string, n lab.Node) (web *corev1.Pod) {
	t.Helper()
	one, labels := int32(1), map[string]string{"app": "netexec"}
	_, err := client.AppsV1().ReplicaSets(ns).Create(t.Context(), &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.ReplicaSetSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: netexec(ns, "", n.Name).Spec}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "a pod", func() (err error) {
		web, err = only(t, n, ns, "app=netexec")
		return err
	})
	return web
}

// only returns the pod of a node that matches, if there is one and it is Ready.
func only(t *testing.T, n lab.Node, ns, selector string) (*corev1.Pod, error) {
	list, err := client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: selector, FieldSelector: "spec.nodeName=" + n.Name})
	if err != nil {
		return nil, err
	}
	if len(list.Items) != 1 || !ready(&list.Items[0]) {
		return nil, fmt.Errorf("%d pods with %s, want one that is ready", len(list.Items), selector)
	}
	return &list.Items[0], nil
}

// readyz returns what the agent of a node says of its health.
func readyz(t *testing.T, n lab.Node) string {
	out, _ := onNode(t.Context(), n.Name, "curl", "--silent", "--max-time", "3", "http://127.0.0.1:10256/readyz")
	return out
}

// problems returns the problems that a Node says it has, or why that is not known.
func problems(t *testing.T, n lab.Node) string {
	now, err := client.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	return now.Annotations["tapestry.dev/problems"]
}

// allowEvictions gives the agents the right and the flag that the chart's healing.evictPods gives, until the test ends.
// It makes other changes to their pods along with that.
func allowEvictions(t *testing.T, also ...func(*corev1.PodSpec)) {
	t.Helper()
	const name = "tapestry-evictions"
	t.Cleanup(func() {
		ctx := context.Background()
		err := errors.Join(client.RbacV1().ClusterRoleBindings().Delete(ctx, name, metav1.DeleteOptions{}), client.RbacV1().ClusterRoles().Delete(ctx, name, metav1.DeleteOptions{}))
		if err != nil {
			t.Error(err)
		}
	})
	_, err := client.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods/eviction"}, Verbs: []string{"create"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "tapestry"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	adapt(t, func(s *corev1.PodSpec) {
		s.Containers[0].Args = append(s.Containers[0].Args, "--evict-pods")
		for _, change := range also {
			change(s)
		}
	})
}

// killBoth kills the keeper and the agent of a node by one kill: neither lives to give anything to the other's
// successor.
func killBoth(t *testing.T, n lab.Node) {
	t.Helper()
	_, err := onNode(t.Context(), n.Name, "sh", "-c", `pids=
		for p in /proc/[0-9]*; do
			case "$(tr '\0' ' ' <"$p/cmdline" 2>/dev/null)" in "/tapestry agent "*|"/tapestry keeper "*) pids="$pids ${p#/proc/}";; esac
		done
		set -- $pids; [ $# = 2 ] && kill -KILL $pids`)
	if err != nil {
		t.Fatal(err)
	}
}

// ingressOf asks Ingress of a node from outside, where nothing is routed.
func ingressOf(t *testing.T, n lab.Node) error {
	out, err := onNode(t.Context(), "outside", "curl", "--silent", "--show-error", "--max-time", "3", "--output", "/dev/null", "--write-out", "%{http_code}",
		"http://"+net.JoinHostPort(n.Addrs[0], "80")+"/")
	if err == nil && out != "404" {
		err = fmt.Errorf("status %s", out)
	}
	return err
}
