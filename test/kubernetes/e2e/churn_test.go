package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"tapestry.dev/tapestry/test/kubernetes/lab"
	"tapestry.dev/tapestry/test/kubernetes/node"
)

var (
	churnPods   = flag.Int("pods", 20, "`number` of pods that TestChurn makes at one time")
	churnRounds = flag.Int("rounds", 3, "how many `times` TestChurn does it")
)

// TestChurn: many pods come and go, several times, and leave nothing behind.
func TestChurn(t *testing.T) {
	ns := namespace(t)
	var starts []time.Duration
	shortest := time.Minute
	round := func() {
		var pods []*corev1.Pod
		for i := range *churnPods {
			pods = append(pods, netexec(ns, fmt.Sprintf("churn-%d", i), state.Nodes[i%len(state.Nodes)].Name))
		}
		began := time.Now()
		started := start(t, pods...)
		took := time.Since(began)
		starts = append(starts, took)
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
		eventually(t, 3*soon, "the end of the pods", func() error {
			left, err := client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
			if err == nil && len(left.Items) > 0 {
				err = fmt.Errorf("%d left", len(left.Items))
			}
			return err
		})
		shortest = min(shortest, time.Since(began))
		t.Logf("%d pods ready after %v, gone after %v", len(pods), took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}
	round() // makes what is made on first use
	before := counts(t)
	for range *churnRounds {
		round()
	}
	asBefore(t, before)
	perNode := (*churnPods + len(state.Nodes) - 1) / len(state.Nodes)
	for _, n := range state.Nodes {
		out, err := onNode(t.Context(), n.Name, "wc", "-l", "/var/lib/tapestry/addresses")
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(out, " ")
		lines, err := strconv.Atoi(first)
		if err != nil {
			t.Fatal(err)
		}
		// The journal is rewritten when it has twice as many lines as there are entries in force, and 128 more. In
		// force are the entries of one round, and the resting ones of the rounds in the last minute.
		if most := 2*(3+int(time.Minute/shortest))*perNode + 128; lines < 2 || lines > most {
			t.Errorf("%s: the journal of addresses has %d lines, want from 2 to %d", n.Name, lines, most)
		}
		figure(t, "%s, after %d times %d pods on %d nodes: nothing is left of them, the journal of addresses has %d lines, %s",
			n.Name, *churnRounds+1, *churnPods, len(state.Nodes), lines, memories(t, n))
	}
	figure(t, "%d pods at once are Ready after %v (median of %d, %v at most)", *churnPods, median(starts), len(starts), slices.Max(starts).Round(time.Millisecond))
}

// A count is a number that must not grow, apart from a tolerance for what always comes and goes.
type count struct{ value, tolerance int }

// resting counts the addresses that are not given out again yet. It is zero when a minute has passed.
const resting = "addresses resting"

// counts counts what pods may leave behind on each node: network namespaces, interfaces, sandboxes, and files;
// descriptors of Tapestry's processes; addresses, pods, flows and goroutines of the agent.
func counts(t *testing.T) map[string]count {
	t.Helper()
	all := map[string]count{}
	for _, n := range state.Nodes {
		for what, script := range map[string]string{
			"namespaces":      "ls /run/netns",
			"interfaces":      "ls /sys/class/net",
			"containers":      "ctr --address " + node.Socket + " --namespace k8s.io containers list --quiet",
			"files":           "find /run/tapestry /var/lib/tapestry",
			"files of CNI":    "find /var/lib/cni",
			"TAPs everywhere": `links() { "$@" ip -o link show type tun | cut -d: -f2; }; links; for n in /run/netns/*; do [ ! -e "$n" ] || links nsenter --net="$n"; done`,
		} {
			out, err := onNode(context.Background(), n.Name, "sh", "-c", script+"; true")
			if err != nil {
				t.Fatal(err)
			}
			all[n.Name+" "+what] = count{value: len(strings.Fields(out))}
		}
		if all[n.Name+" TAPs everywhere"].value == 0 || all[n.Name+" files"].value < 4 {
			t.Fatalf("%s has not even the node's own TAP and files: %v", n.Name, all)
		}
		for name, p := range tapestryOn(t, n) {
			fds, taps := p.descriptors(t)
			all[n.Name+" descriptors of "+name] = count{fds, 4} // connections
			all[n.Name+" TAPs of "+name] = count{value: taps}
		}
		s := agentStatus(t, n)
		flows := 0
		for _, v := range s.values("tapestry_flows") {
			flows += int(v.N)
		}
		all[n.Name+" pods"] = count{value: len(s.Pods)}
		all[n.Name+" addresses held"] = count{value: s.value(t, "tapestry_address_leases")}
		all[n.Name+" "+resting] = count{value: s.value(t, "tapestry_addresses_resting")}
		all[n.Name+" flows"] = count{flows, 60} // kubelet's and the API server's own
		all[n.Name+" goroutines"] = count{s.value(t, "go_goroutines"), 10}
	}
	return all
}

// asBefore waits until no count is higher than before. That takes minutes: kubelet collects the remains of pods once a
// minute, flows of closed connections last about as long, addresses rest for a minute, and addresses that were prepared
// for a pod in vain are released after two minutes.
func asBefore(t *testing.T, before map[string]count) {
	t.Helper()
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for deadline := time.Now().Add(4 * time.Minute); ; <-tick.C {
		var grown []string
		after := counts(t)
		for what, was := range before {
			if strings.HasSuffix(what, resting) {
				was.value = 0
			}
			if n := after[what]; n.value > was.value+n.tolerance {
				grown = append(grown, fmt.Sprintf("%s: %d, and %d before", what, n.value, was.value))
			}
		}
		if len(grown) == 0 {
			return
		}
		if time.Now().After(deadline) {
			slices.Sort(grown)
			t.Fatalf("more than before, after 4 minutes:\n%s", strings.Join(grown, "\n"))
		}
	}
}

// status is a part of the output of "tapestry status".
type status struct {
	Pods     []struct{ Name string }
	Counters []struct {
		Name   string
		Values []value
	}
}

// value is one value of a counter.
type value struct{ N float64 }

// values returns the values of the counter with that name; none when there is no such counter.
func (s *status) values(name string) []value {
	for _, c := range s.Counters {
		if c.Name == name {
			return c.Values
		}
	}
	return nil
}

// value returns the value of a counter that has exactly one.
func (s *status) value(t *testing.T, name string) int {
	t.Helper()
	list := s.values(name)
	if len(list) != 1 {
		t.Fatalf("the status has %d values of %s, want one", len(list), name)
	}
	return int(list[0].N)
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
	if len(s.Pods) == 0 {
		t.Fatalf("the status says nothing of pods: %s", out)
	}
	return s
}
