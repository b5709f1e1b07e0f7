package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const agents = "app.kubernetes.io/name=tapestry,app.kubernetes.io/component=agent"

// TestAgentPodDeleted: connections through a Service go on when the agent pods of both nodes are deleted. One leads to
// a pod of the same node, one to a pod of another node.
func TestAgentPodDeleted(t *testing.T) {
	ns := namespace(t)
	pods := onEachNode(t, ns)
	s := service(t, ns, len(pods), func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{{Name: "iperf", Port: iperfPort}}
	})
	iperf(t, pods)
	var streams []*stream
	for _, to := range []string{s.Spec.ClusterIP, pods[0].Status.PodIP, pods[1].Status.PodIP} {
		streams = append(streams, newStream(t, pods[0], to))
	}
	list, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: agents})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != len(state.Nodes) {
		t.Fatalf("%d agents, want %d", len(list.Items), len(state.Nodes))
	}
	for _, p := range list.Items {
		if err := client.CoreV1().Pods("kube-system").Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		eventually(t, soon, "a new agent on "+p.Spec.NodeName, func() error {
			now, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: agents, FieldSelector: "spec.nodeName=" + p.Spec.NodeName})
			if err != nil {
				return err
			}
			for i := range now.Items {
				if n := &now.Items[i]; n.UID != p.UID && ready(n) {
					return nil
				}
			}
			return fmt.Errorf("%d pods, no new one that is ready", len(now.Items))
		})
		t.Logf("%s: a new agent after %v", p.Spec.NodeName, time.Since(began).Round(time.Millisecond))
	}
	for _, s := range streams {
		s.goesOn(t)
	}
}

// TestControlPlaneGone: existing traffic goes on without the API server, and later changes are served.
func TestControlPlaneGone(t *testing.T) {
	ns := namespace(t)
	pods := onEachNode(t, ns)
	s := service(t, ns, len(pods))
	url := "http://" + net.JoinHostPort(s.Spec.ClusterIP, "80") + "/hostname"
	eventually(t, soon, "the Service", func() error { _, err := inPod(t.Context(), pods[0], curl(url)...); return err })

	// kubectl exec needs the API server, so the pod itself records the answers.
	script := fmt.Sprintf("for i in $(seq 1 100); do curl -s -f --max-time 2 %s >/dev/null && echo ok || echo bad; sleep 0.1; done >/tmp/result 2>&1; echo done >>/tmp/result", url)
	if _, err := inPod(t.Context(), pods[0], "sh", "-c", "("+script+") >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	if err := theLab.StopControlPlane(); err != nil {
		t.Fatal(err)
	}
	if err := theLab.StartControlPlane(t.Context()); err != nil {
		t.Fatal(err)
	}
	var result string
	eventually(t, soon, "the requests", func() (err error) {
		if result, err = inPod(t.Context(), pods[0], "cat", "/tmp/result"); err == nil && !strings.Contains(result, "done") {
			err = fmt.Errorf("not done")
		}
		return err
	})
	if ok := strings.Count(result, "ok"); ok != 100 {
		t.Errorf("%d of 100 requests were answered", ok)
	}
	// A new pod and a new endpoint.
	more := start(t, netexec(ns, "new", state.Nodes[1].Name))
	eventually(t, soon, "a new endpoint", func() error {
		return reached(more, func() (string, error) { return inPod(t.Context(), pods[0], curl(url)...) })
	})
}
