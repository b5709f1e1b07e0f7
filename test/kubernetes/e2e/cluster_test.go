package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.56"

// soon limits how long anything may take that includes the start of a pod. A kubelet whose API server was away asks it
// again after a minute at most: client-go's watches wait for up to 30 s, and as much again by chance.
const soon = 2 * time.Minute

// eventually tries until it succeeds.
func eventually(t *testing.T, timeout time.Duration, what string, try func() error) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(timeout); ; <-tick.C {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, timeout, err)
		}
	}
}

// figure logs a line for the record of a run. test/kubernetes/full looks for such lines.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("figure: "+format, args...)
}

// namespace makes a namespace for the test, and removes it afterwards.
func namespace(t *testing.T) string {
	t.Helper()
	ns, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "tapestry-e2e-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context has ended already.
		if err := client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	// Pods need this account.
	eventually(t, soon, "default service account of "+ns.Name, func() error {
		_, err := client.CoreV1().ServiceAccounts(ns.Name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return ns.Name
}

// netexec returns a pod that serves on port 8080: /hostname, /clientip, /shell and more.
func netexec(ns, name, node string) *corev1.Pod {
	now := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"app": "netexec", "name": name}},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			TerminationGracePeriodSeconds: &now,
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name: "netexec", Image: agnhost, Args: []string{"netexec", "--http-port=8080", "--udp-port=8081"},
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
					HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}},
			}},
		},
	}
}

// start makes the pods and returns them when all are Ready.
func start(t *testing.T, pods ...*corev1.Pod) []*corev1.Pod {
	t.Helper()
	for _, p := range pods {
		if _, err := client.CoreV1().Pods(p.Namespace).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var started []*corev1.Pod
	for _, p := range pods {
		var now *corev1.Pod
		eventually(t, soon, "pod "+p.Name, func() (err error) {
			if now, err = client.CoreV1().Pods(p.Namespace).Get(t.Context(), p.Name, metav1.GetOptions{}); err != nil {
				return err
			}
			if !ready(now) {
				return fmt.Errorf("%s, %s", now.Status.Phase, describe(now))
			}
			return nil
		})
		started = append(started, now)
	}
	return started
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// describe returns what is known about why a pod is not ready.
func describe(p *corev1.Pod) string {
	var all []string
	for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if w := s.State.Waiting; w != nil {
			all = append(all, s.Name+" waits: "+w.Reason+" "+w.Message)
		}
		if e := s.State.Terminated; e != nil && e.ExitCode != 0 {
			all = append(all, fmt.Sprintf("%s ended with %d", s.Name, e.ExitCode))
		}
	}
	events, err := client.CoreV1().Events(p.Namespace).List(context.Background(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + p.Name + ",type=Warning"})
	if err == nil && len(events.Items) > 0 {
		all = append(all, events.Items[len(events.Items)-1].Message)
	}
	return strings.Join(all, "; ")
}

// onEachNode starts one netexec on each node: a on node-1, b on node-2.
func onEachNode(t *testing.T, ns string) []*corev1.Pod {
	t.Helper()
	var pods []*corev1.Pod
	for i, n := range state.Nodes {
		pods = append(pods, netexec(ns, string(rune('a'+i)), n.Name))
	}
	return start(t, pods...)
}

// service makes a Service for all netexec pods, and returns it when it has so many ready endpoints.
func service(t *testing.T, ns string, endpoints int, change ...func(*corev1.Service)) *corev1.Service {
	t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "netexec"},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
	for _, c := range change {
		c(s)
	}
	s, err := client.CoreV1().Services(ns).Create(t.Context(), s, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "endpoints of "+s.Name, func() error {
		slices, err := client.DiscoveryV1().EndpointSlices(ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + s.Name})
		if err != nil {
			return err
		}
		n := 0
		for _, slice := range slices.Items {
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready != nil && *e.Conditions.Ready {
					n++
				}
			}
		}
		if n != endpoints {
			return fmt.Errorf("%d ready, want %d", n, endpoints)
		}
		return nil
	})
	return s
}

// run runs a command and returns what it prints.
func run(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(problems.String()))
	}
	return out.String(), nil
}

// inPod runs a command in the pod's first container and returns what it prints.
func inPod(ctx context.Context, p *corev1.Pod, argv ...string) (string, error) {
	return run(ctx, append([]string{theLab.Kubectl(), "--kubeconfig", theLab.Kubeconfig(), "--namespace", p.Namespace, "exec", p.Name, "--"}, argv...)...)
}

// onNode runs a command in all namespaces of a node, or in the network outside, and returns what it prints.
func onNode(ctx context.Context, name string, argv ...string) (string, error) {
	argv, err := state.Inside(name, argv...)
	if err != nil {
		return "", err
	}
	return run(ctx, argv...)
}

// curl returns the command line of one request. A slow answer is an error.
func curl(url string) []string {
	return []string{"curl", "--silent", "--show-error", "--fail", "--max-time", "3", url}
}

// hold runs a program in the network outside, or in that of a node, until the test ends.
func hold(t *testing.T, name string, argv ...string) {
	t.Helper()
	argv, err := state.In(name, argv...)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	if testing.Verbose() {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}
