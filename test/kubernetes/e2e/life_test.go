package e2e

import (
	"fmt"
	"net"
	"strconv"
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
		s.Spec.Ports = []corev1.ServicePort{{Name: "iperf", Port: 5001}}
	})
	for _, p := range pods {
		if _, err := inPod(t.Context(), p, "sh", "-c", "iperf --server --daemon >/dev/null 2>&1"); err != nil {
			t.Fatal(err)
		}
	}
	targets := map[string]string{"the Service": s.Spec.ClusterIP, "here": pods[0].Status.PodIP, "there": pods[1].Status.PodIP}
	type result struct {
		to, report string
		err        error
	}
	results := make(chan result)
	for to, addr := range targets {
		go func() {
			// The rate is small, since every segment matters and not their number.
			report, err := inPod(t.Context(), pods[0], "iperf", "--client", addr, "--time", "25", "--interval", "1", "--bandwidth", "20M", "--reportstyle", "C")
			results <- result{to, report, err}
		}()
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
	for range targets {
		r := <-results
		if r.err != nil {
			t.Errorf("connection to %s: %v", r.to, r.err)
			continue
		}
		if still, lines := transferred(r.report); lines < 20 || !still {
			t.Errorf("connection to %s: stood still at its end, or ended early:\n%s", r.to, r.report)
		}
	}
}

// transferred reads iperf's report. The report has one line for each second and one for all, with date, addresses,
// ports, ID, seconds, bytes and rate. transferred reports whether bytes were transferred in the last seconds.
func transferred(report string) (atEnd bool, lines int) {
	all := strings.Split(strings.TrimSpace(report), "\n")
	for i, line := range all {
		f := strings.Split(line, ",")
		if len(f) < 9 {
			continue
		}
		lines++
		if n, err := strconv.ParseInt(f[7], 10, 64); err == nil && n > 0 && i >= len(all)-4 && i < len(all)-1 {
			atEnd = true
		}
	}
	return atEnd, lines
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
