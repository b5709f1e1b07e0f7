package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"tapestry.dev/tapestry/test/kubernetes/lab"
)

const (
	// every is the time between two attempts.
	every = 20 * time.Millisecond
	// patience is how long one waits for each lookup and for a connection to be accepted. Resolvers wait for 5 s.
	patience = 5 * time.Second
	// resent is how long one waits for an answer. A request that is lost with an agent's container is sent again by its
	// client's TCP after 0.2, 0.6, 1.4, 3, 6.2 and 12.6 s, and kubelet takes seconds to start another container.
	resent = 15 * time.Second
	// mostCut is how many connections that an agent had accepted its end may cut, once or three times.
	mostCut = 8
	// inHand is how long before its end an agent may have read a question that it does not answer any more.
	inHand = time.Second
)

// sight is what clients of a node see while something happens to its agent.
type sight struct {
	lookups seen // of a Service's name, from a pod of the node
	conns   seen // to a NodePort, from another node to this one, each with one request
	stream  seen // requests over one connection, from a pod of the node to a Service whose pod is on another node

	stop context.CancelFunc
	done sync.WaitGroup
}

// seen counts attempts.
type seen struct {
	mu                 sync.Mutex
	n, failed, refused int
	slowest            time.Duration
	last               error
	lost               []time.Time // when those that failed began
}

// without returns how many failed, but for one each that was in the agent's hands at one of those moments.
func (s *seen) without(ends []time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.failed
	for _, end := range ends {
		if slices.ContainsFunc(s.lost, func(began time.Time) bool { return began.Before(end) && end.Sub(began) < inHand }) {
			n--
		}
	}
	return n
}

func (s *seen) add(began time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	if err != nil {
		s.failed++
		s.last = err
		s.lost = append(s.lost, began)
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		s.refused++
	}
	s.slowest = max(s.slowest, time.Since(began))
}

func (s *seen) String() string {
	text := fmt.Sprintf("%d of %d failed (%d refused), the slowest took %v", s.failed, s.n, s.refused, s.slowest.Round(time.Millisecond))
	if s.last != nil {
		text += fmt.Sprintf(" (%v)", s.last)
	}
	return text
}

// outage is the place from which one looks at a node.
type outage struct {
	t      *testing.T
	client int    // a process in a pod of the node
	dns    string // cluster DNS
	name   string // of a Service
	vip    string // of a Service, whose only pod is on another node
	port   string // a NodePort on the node
	last   string // an address that the last of all these objects names, and no other object that the node's agent knows
}

func newOutage(t *testing.T, n lab.Node) outage {
	t.Helper()
	ns := namespace(t)
	other := state.Nodes[0]
	own, far := netexec(ns, "own", n.Name), netexec(ns, "far", other.Name)
	far.Labels["app"] = "far"
	pods := start(t, own, far)
	near := service(t, ns, 1, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort })
	there := service(t, ns, 1, func(s *corev1.Service) { s.Name, s.Spec.Selector = "far", map[string]string{"app": "far"} })
	dns, err := client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	o := outage{
		t: t, client: processIn(t, pods[0]), dns: net.JoinHostPort(dns.Spec.ClusterIP, "53"), name: "far." + ns + ".svc.cluster.local.",
		vip: net.JoinHostPort(there.Spec.ClusterIP, "80"), port: net.JoinHostPort(n.Addrs[0], fmt.Sprint(near.Spec.Ports[0].NodePort)),
		last: pods[1].Status.PodIP, // in the EndpointSlice alone, since an agent knows the pods of its own node
	}
	for what, try := range map[string]func() error{"a name": o.lookup, "a NodePort": o.connect} {
		eventually(t, soon, what, try)
	}
	return o
}

// lookup asks cluster DNS for a Service, once.
func (o *outage) lookup() error {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		err = inNetwork(o.client, func() (err error) {
			c, err = (&net.Dialer{}).DialContext(ctx, "udp4", o.dns)
			return err
		})
		return c, err
	}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := r.LookupNetIP(ctx, "ip4", o.name)
	return err
}

// connect opens a connection to the NodePort, and asks for the pod's name.
func (o *outage) connect() error {
	c, err := net.DialTimeout("tcp4", o.port, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = hostname(c, resent)
	return err
}

// watch looks at the node until its end is called.
func (o *outage) watch() (w *sight, end func()) {
	o.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w = &sight{stop: cancel}
	// Attempts do not wait for one another.
	attempts := func(s *seen, try func() error) {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				w.done.Go(func() {
					began := time.Now()
					s.add(began, try())
				})
			}
		}
	}
	w.done.Go(func() { attempts(&w.lookups, o.lookup) })
	w.done.Go(func() { attempts(&w.conns, o.connect) })
	c, err := dialIn(o.client, o.vip)
	if err != nil {
		o.t.Fatal(err)
	}
	w.done.Go(func() {
		defer c.Close()
		for ctx.Err() == nil {
			began := time.Now()
			_, err := hostname(c, resent)
			w.stream.add(began, err)
			if err != nil {
				return
			}
			time.Sleep(every)
		}
	})
	return w, func() { cancel(); w.done.Wait() }
}

// report tells what was seen, and fails when a lookup or the connection failed, or a client was refused. A few
// connections that the agent of before had accepted may be cut, and a question that it had read when it was killed, at
// one of those moments, is not answered (docs/architecture.md, decision 8).
func (o *outage) report(what string, w *sight, killed ...time.Time) {
	o.t.Helper()
	figure(o.t, "%s: lookups: %v; connections to a NodePort: %v; requests over one connection to a Service: %v", what, &w.lookups, &w.conns, &w.stream)
	if w.lookups.without(killed)+w.conns.refused+w.stream.failed > 0 || w.conns.failed > mostCut {
		o.t.Errorf("%s: something failed", what)
	}
	if w.lookups.n == 0 || w.conns.n == 0 || w.stream.n == 0 {
		o.t.Errorf("%s: nothing was tried", what)
	}
}

// kill kills the agent of a node with SIGKILL.
func kill(t *testing.T, n lab.Node) {
	t.Helper()
	pid := filepath.Base(string(tapestryOn(t, n)["agent"]))
	if _, err := onNode(t.Context(), n.Name, "kill", "-KILL", pid); err != nil {
		t.Fatal(err)
	}
}

// restarted returns how often the node's agent was started again in its container, as it says; -1 when it does not
// answer.
func restarted(t *testing.T, n lab.Node) int {
	t.Helper()
	out, err := inPod(t.Context(), agentOf(t, n), "/tapestry", "status", "--output=json")
	var s struct{ Node struct{ Restarts int } }
	if json.Unmarshal([]byte(out), &s) != nil || err != nil && out == "" {
		return -1
	}
	return s.Node.Restarts
}

// agentOf returns the pod of a node's agent. There must be one.
func agentOf(t *testing.T, n lab.Node) *corev1.Pod {
	t.Helper()
	list, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: agents, FieldSelector: "spec.nodeName=" + n.Name})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%d agents on %s, %v", len(list.Items), n.Name, err)
	}
	return &list.Items[0]
}

// TestAgentKilled: the agent is killed once, and then three times within seconds. Each time another one takes its place
// at once, in the same container: nothing that clients ask fails.
func TestAgentKilled(t *testing.T) {
	n := state.Nodes[len(state.Nodes)-1]
	o := newOutage(t, n)
	pod := agentOf(t, n)
	before := restarted(t, n)
	again := func(count int) {
		t.Helper()
		eventually(t, soon, "another agent", func() error {
			if now := restarted(t, n); now != before+count {
				return fmt.Errorf("it was started again %d times, and %d before", now, before)
			}
			return nil
		})
	}
	w, end := o.watch()
	kill(t, n)
	killed := []time.Time{time.Now()}
	again(1)
	end()
	o.report("SIGKILL of the agent", w, killed...)
	w, end = o.watch()
	killed = nil
	for i := range 3 {
		kill(t, n)
		killed = append(killed, time.Now())
		again(i + 2)
	}
	end()
	o.report("SIGKILL of the agent, three times", w, killed...)
	now := agentOf(t, n)
	if was, is := pod.Status.ContainerStatuses[0].RestartCount, now.Status.ContainerStatuses[0].RestartCount; was != is || now.UID != pod.UID {
		t.Errorf("the container was restarted: %d times, and %d before", is, was)
	}
	logs, err := run(t.Context(), theLab.Kubectl(), "--kubeconfig", theLab.Kubeconfig(), "--namespace=kube-system", "logs", now.Name)
	if err != nil || strings.Count(logs, "the command ended and is started again") < 4 {
		t.Errorf("the log does not say that the agent was started again (%v)", err)
	}
}

// TestRollout: the agents are replaced one after the other, as by an update. Nothing that clients ask fails.
func TestRollout(t *testing.T) {
	n := state.Nodes[len(state.Nodes)-1]
	o := newOutage(t, n)
	old := agentOf(t, n).UID
	w, end := o.watch()
	began := time.Now()
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"tapestry.dev/e2e-rollout":%q}}}}}`, began.Format(time.RFC3339Nano))
	if _, err := client.AppsV1().DaemonSets("kube-system").Patch(t.Context(), "tapestry", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*soon, "the end of the rollout", func() error {
		d, err := client.AppsV1().DaemonSets("kube-system").Get(t.Context(), "tapestry", metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := d.Status
		if want := int32(len(state.Nodes)); s.ObservedGeneration < d.Generation || s.UpdatedNumberScheduled != want || s.NumberAvailable != want || s.NumberUnavailable != 0 {
			return fmt.Errorf("%+v", s)
		}
		list, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: agents})
		if err == nil && len(list.Items) != len(state.Nodes) {
			err = fmt.Errorf("%d pods", len(list.Items))
		}
		return err
	})
	took := time.Since(began)
	end()
	o.report(fmt.Sprintf("rollout of the agents of %d nodes, in %v", len(state.Nodes), took.Round(100*time.Millisecond)), w)
	if agentOf(t, n).UID == old {
		t.Error("the agent was not replaced")
	}
}

// TestAgentWithoutControlPlane: while no API server answers, the agent is killed, and then its whole container. Each
// time the next agent begins with what the one before saved: nothing that clients ask fails. The agent comes back also
// when its pod is begun anew, with all init steps.
func TestAgentWithoutControlPlane(t *testing.T) {
	n := state.Nodes[len(state.Nodes)-1]
	replace(t, agents, n) // kubelet waits before it starts a container that has ended before
	uid := agentOf(t, n).UID
	o := newOutage(t, n)
	eventually(t, soon, "the Services are saved", func() error {
		_, err := onNode(t.Context(), n.Name, "grep", "-a", "-q", "-w", "-F", o.last, "/var/lib/tapestry/objects")
		return err
	})
	if err := theLab.StopControlPlane(); err != nil {
		t.Fatal(err)
	}
	started := false
	t.Cleanup(func() {
		if !started {
			if err := theLab.StartControlPlane(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	// again kills processes, and waits for another agent that is ready. It returns when they were killed.
	again := func(kill string) (killed time.Time) {
		t.Helper()
		before := tapestryOn(t, n)["agent"]
		if _, err := onNode(t.Context(), n.Name, "sh", "-c", kill); err != nil {
			t.Fatal(err)
		}
		killed = time.Now()
		eventually(t, soon, "another agent that is ready with saved objects", func() error {
			if now := agentProcess(n); now == "" || now == before {
				return errors.New("there is no other agent")
			}
			out, err := onNode(t.Context(), n.Name, "curl", "--silent", "--max-time", "2", "http://127.0.0.1:10256/readyz")
			if err == nil && !strings.HasPrefix(out, "[+]cluster ok") {
				err = fmt.Errorf("readyz says %s", out)
			}
			return err
		})
		return killed
	}
	for _, c := range []struct{ what, process string }{{"SIGKILL of the agent", "agent"}, {"SIGKILL of its container", "supervise"}} {
		w, end := o.watch()
		killed := again(`for p in /proc/[0-9]*; do
			case "$(tr '\0' ' ' <"$p/cmdline" 2>/dev/null)" in "/tapestry ` + c.process + ` "*) kill -KILL "${p#/proc/}";; esac
		done`)
		end()
		o.report(c.what+" while no API server answers", w, killed)
	}
	// With its sandbox the pod is begun anew, and its init steps run again.
	began := time.Now()
	again(`for p in /proc/[0-9]*; do
		grep -q -e '` + string(uid) + `' -e '` + strings.ReplaceAll(string(uid), "-", "_") + `' "$p/cgroup" 2>/dev/null || continue
		case "$(tr '\0' ' ' <"$p/cmdline" 2>/dev/null)" in /pause*) kill -KILL "${p#/proc/}";; esac
	done`)
	figure(t, "SIGKILL of the pod's sandbox while no API server answers: the next agent is ready after %v", time.Since(began).Round(100*time.Millisecond))
	started = true
	if err := theLab.StartControlPlane(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the agent follows the API server again", func() error {
		out, err := inPod(t.Context(), agentOf(t, n), "/tapestry", "status")
		if err == nil && strings.Contains(out, "as saved on this node") {
			err = errors.New(out)
		}
		return err
	})
}

// agentProcess returns the process of a node's agent, or "" when there is none at the moment.
func agentProcess(n lab.Node) program {
	out, err := onNode(context.Background(), n.Name, "sh", "-c", `for p in /proc/[0-9]*; do
		case "$(tr '\0' ' ' <"$p/cmdline" 2>/dev/null)" in "/tapestry agent "*) echo "$p";; esac
	done`)
	if err != nil || strings.TrimSpace(out) == "" {
		return ""
	}
	return program(filepath.Join("/proc", fmt.Sprint(n.PID), "root", strings.TrimSpace(out)))
}
