package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"tapestry.dev/tapestry/test/kubernetes/lab"
	"tapestry.dev/tapestry/test/kubernetes/node"
)

const agents = "app.kubernetes.io/name=tapestry,app.kubernetes.io/component=agent"

// TestAgentPodDeleted: connections through a Service, to a pod of the same node and to one of another, go on when the agent
// pods of both nodes are deleted.
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
			// A small rate: it is about every segment, not about many.
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

// transferred reads iperf's report, one line for each second and one for all: date, addresses, ports, id, seconds, bytes,
// rate. It says whether bytes went in the last seconds.
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

// TestControlPlaneGone: what is there goes on without the API server, and what comes afterwards is served.
func TestControlPlaneGone(t *testing.T) {
	ns := namespace(t)
	pods := onEachNode(t, ns)
	s := service(t, ns, len(pods))
	url := "http://" + net.JoinHostPort(s.Spec.ClusterIP, "80") + "/hostname"
	eventually(t, soon, "the Service", func() error { _, err := inPod(t.Context(), pods[0], curl(url)...); return err })

	// kubectl exec needs the API server: the pod itself writes down what it gets.
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

// TestChurn: 20 pods come and go, several times, and nothing of them stays.
func TestChurn(t *testing.T) {
	const rounds, count = 3, 20
	ns := namespace(t)
	round := func() {
		var pods []*corev1.Pod
		for i := range count {
			pods = append(pods, netexec(ns, fmt.Sprintf("churn-%d", i), state.Nodes[i%len(state.Nodes)].Name))
		}
		began := time.Now()
		started := start(t, pods...)
		took := time.Since(began)
		addrs := map[string]bool{}
		for _, p := range started {
			if addrs[p.Status.PodIP] {
				t.Errorf("%s is the address of two pods", p.Status.PodIP)
			}
			addrs[p.Status.PodIP] = true
		}
		for _, p := range pods {
			if err := client.CoreV1().Pods(ns).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, soon, "the end of the pods", func() error {
			left, err := client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
			if err == nil && len(left.Items) > 0 {
				err = fmt.Errorf("%d left", len(left.Items))
			}
			return err
		})
		t.Logf("%d pods ready after %v, gone after %v", count, took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}
	round() // lazily made things are made
	before := counts(t)
	for range rounds {
		round()
	}
	// Kubelet collects what is left of pods once a minute; flows of closed connections take about as long.
	eventually(t, 3*time.Minute, "as before", func() error {
		after := counts(t)
		for what, n := range after {
			if n.value > before[what].value+n.tolerance {
				return fmt.Errorf("%s: %d, and %d before", what, n.value, before[what].value)
			}
		}
		return nil
	})
}

// A count is of something that must not grow, but for what always comes and goes.
type count struct{ value, tolerance int }

// counts counts what pods may leave behind on each node: network namespaces, interfaces, sandboxes; descriptors of Tapestry's
// processes; pods, flows and goroutines of the agent.
func counts(t *testing.T) map[string]count {
	t.Helper()
	all := map[string]count{}
	for _, n := range state.Nodes {
		for what, argv := range map[string][]string{
			"namespaces": {"ls", "/run/netns"},
			"interfaces": {"ls", "/sys/class/net"},
			"containers": {"ctr", "--address", node.Socket, "--namespace", "k8s.io", "containers", "list", "--quiet"},
		} {
			out, err := onNode(context.Background(), n.Name, argv...)
			if err != nil {
				t.Fatal(err)
			}
			all[n.Name+" "+what] = count{value: len(strings.Fields(out))}
		}
		for what, fds := range descriptors(t, n) {
			all[n.Name+" descriptors of "+what] = count{fds, 4} // connections
		}
		s := agentStatus(t, n)
		flows := 0
		for _, n := range s.Stats.Flows {
			flows += n
		}
		all[n.Name+" pods"] = count{value: len(s.Detail.Pods)}
		all[n.Name+" flows"] = count{flows, 60} // kubelet's and the API server's own
		all[n.Name+" goroutines"] = count{s.Stats.Goroutines, 10}
	}
	return all
}

// status is a part of what "tapestry status" says.
type status struct {
	Detail struct{ Pods []struct{ Name string } }
	Stats  struct {
		Goroutines int
		Flows      map[string]int
	}
}

func agentStatus(t *testing.T, n lab.Node) status {
	t.Helper()
	pods, err := client.CoreV1().Pods("kube-system").List(context.Background(), metav1.ListOptions{LabelSelector: agents, FieldSelector: "spec.nodeName=" + n.Name})
	if err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != 1 {
		t.Fatalf("%d agents on %s", len(pods.Items), n.Name)
	}
	out, err := inPod(context.Background(), &pods.Items[0], "/tapestry", "status", "--output=json")
	if err != nil {
		t.Fatal(err)
	}
	var s status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Detail.Pods) == 0 || s.Stats.Goroutines == 0 {
		t.Fatalf("the status says nothing of pods and goroutines: %s", out)
	}
	return s
}

// descriptors counts those of Tapestry's processes, which are the ones in the node's process namespace with that name.
func descriptors(t *testing.T, n lab.Node) map[string]int {
	t.Helper()
	all := map[string]int{}
	out, err := onNode(context.Background(), n.Name, "sh", "-c", `for p in /proc/[0-9]*; do printf '%s ' "$p"; tr '\0' ' ' <"$p/cmdline"; echo; done 2>/dev/null`)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(out, "\n") {
		f := strings.Fields(line)
		if len(f) < 3 || filepath.Base(f[1]) != "tapestry" {
			continue
		}
		fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(n.PID), "root", f[0], "fd"))
		if err != nil {
			t.Fatal(err)
		}
		all[f[2]] = len(fds)
	}
	if len(all) < 2 {
		t.Fatalf("%s runs %v, want an agent and a keeper", n.Name, all)
	}
	return all
}
