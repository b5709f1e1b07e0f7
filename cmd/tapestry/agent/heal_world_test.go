package agent

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/keeper"
)

// makeHostTAP does what the init step does.
func (n *machine) makeHostTAP(podCIDR string) {
	n.t.Helper()
	err := hosttap.Ensure(nil, n.keeper, hosttap.Config{
		PodCIDRs: addresstest.Prefixes(podCIDR), Pods: addresstest.Prefixes("10.244.0.0/16"), Services: addresstest.Prefixes("10.96.0.0/12"),
		MTU: 1420, Owner: os.Geteuid(),
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// loseKeeper kills the agent, and then has the keeper forget everything, as if both had been killed.
func (n *machine) loseKeeper() {
	n.t.Helper()
	n.kill()
	kept, err := keeper.Dial(n.t.Context(), n.dir+"/keeper.sock")
	if err != nil {
		n.t.Fatal(err)
	}
	defer kept.Close()
	items, err := kept.List()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, it := range items {
		it.File.Close()
		if err := kept.Delete(it.Key); err != nil {
			n.t.Error(err)
		}
	}
}

// missing returns what keeps the node from being ready.
func (n *machine) missing() string {
	told, err := n.api.Node(n.t.Context())
	if err != nil {
		return err.Error()
	}
	return strings.Join(told.Missing, "\n")
}

// runningPod returns a Pod as kubelet reports one that runs on n1. A managed one has a controller.
func runningPod(s *sandbox, managed bool) string {
	addr := netip.MustParsePrefix(s.addrs()).Addr()
	owner := ""
	if managed {
		owner = `, "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]`
	}
	return fmt.Sprintf(`{"metadata": {"namespace": "default", "name": %q%s}, "spec": {"nodeName": "n1"},
		"status": {"phase": "Running", "podIP": %q, "podIPs": [{"ip": %q}]}}`, s.pod, owner, addr, addr)
}

// newHealed returns a node on an API server with a host TAP and the Ingress port 80, that may evict pods.
func newHealed(t *testing.T) (*machine, *clustertest.Server) {
	t.Helper()
	s := clustertest.New(t)
	n := newMachine(t)
	n.source = []string{"--kubeconfig", s.Kubeconfig(), "--host-tap", "--own-pod", "kube-system/tapestry-x", "--own-pod-uid", "own", "--evict-pods", "--evict-after", "100ms"}
	s.PutJSON("nodes", allocatedNode)
	n.makeHostTAP("10.244.1.0/24")
	t.Cleanup(func() {
		n.kill()
		if err := hosttap.Remove(nil); err != nil {
			t.Error(err)
		}
	})
	n.start()
	n.until("the node is whole", func() bool { return n.missing() == "" && n.marked() })
	return n, s
}

// marked reports whether the agent remembers that the node was whole.
func (n *machine) marked() bool {
	b, err := os.ReadFile(n.dir + "/state/whole")
	return err == nil && string(b) == "own\n"
}

// TestKeeperAndAgentLost has both killed at once: the host TAP comes back by itself, the pods that are left without a
// TAP are named everywhere, keep their addresses, and those that somebody makes anew are evicted.
func TestKeeperAndAgentLost(t *testing.T) {
	n, s := newHealed(t)
	s.Answer("evictions", 429) // as long as a PodDisruptionBudget does not allow it
	web, bare := n.sandbox("c1", "web"), n.sandbox("c2", "bare")
	for _, p := range []*sandbox{web, bare} {
		p.works("ADD")
		s.PutJSON("pods", runningPod(p, p == web))
	}
	s.PutJSON("pods", `{"metadata": {"namespace": "default", "name": "done"}, "spec": {"nodeName": "n1"},
		"status": {"phase": "Succeeded", "podIP": "10.244.1.200", "podIPs": [{"ip": "10.244.1.200"}]}}`)
	n.until("the pods are known", func() bool { return n.counters().Get("tapestry_pods") == 2 })

	n.loseKeeper()
	n.start()
	n.until("the host TAP is attached again, and the pods are named", func() bool {
		told, err := n.api.Node(t.Context())
		return err == nil && told.HostTAP && n.missing() == "pods: 2 pods without a TAP (default/bare, default/web): delete them, so that they are made anew"
	})
	problems := n.problems()
	for _, want := range []string{
		"Pod default/web: it has no network", "kubectl -n default delete pod web",
		"Pod default/bare: it has no network", "make it anew; it has no controller that does",
	} {
		if !strings.Contains(problems, want) {
			t.Errorf("status does not say %q:\n%s", want, problems)
		}
	}
	if strings.Contains(problems, "done") {
		t.Errorf("a pod that has ended is missed:\n%s", problems)
	}
	n.until("it is said on the Pods and the Node, and why web is not evicted", func() bool {
		a, unavailable := s.NodeSays("n1")
		return strings.Contains(s.Events(), "Pod web: it has no network") && strings.Contains(a[kube.ProblemsAnnotation], "a PodDisruptionBudget does not allow it now") &&
			unavailable == "False"
	})
	if got := n.counters().Of("tapestry_ailments"); got["no-tap"] != 2 || got["no-host-tap"] != 0 {
		t.Errorf("counted are %v", got)
	}
	// Nobody else is given the addresses of the pods.
	next := n.sandbox("c3", "next")
	next.works("ADD")
	if got := next.addrs(); got == web.addrs() || got == bare.addrs() {
		t.Errorf("another pod has %s, of a pod that runs", got)
	}

	s.Answer("evictions", 0)
	n.loseKeeper() // and the rest after the refusal with it
	n.start()
	n.until("web is evicted", func() bool { return !s.Has("pods", "default", "web") })
	web.works("DEL")
	n.until("bare alone is left", func() bool { return strings.HasPrefix(n.missing(), "pods: 1 pod without a TAP (default/bare):") })
	if !s.Has("pods", "default", "bare") {
		t.Error("a pod was evicted that nobody makes anew")
	}
	bare.works("DEL")
	s.Delete(s.Object("pods", runningPod(bare, false)))
	n.until("the node is whole", func() bool { return n.missing() == "" })
	if asked := s.Requests(); slices.Contains(asked, "POST pods/tapestry-x/eviction") {
		t.Errorf("the agent's own pod was to be evicted: %q", asked)
	}
}

// TestHostTAPLost has the interface of the host TAP deleted together with keeper and agent. The node's first problem is
// that, nothing new is scheduled there, and the agent has its own pod evicted, but only where its init steps had been
// of use.
func TestHostTAPLost(t *testing.T) {
	n, s := newHealed(t)
	s.PutJSON("pods", `{"metadata": {"namespace": "kube-system", "name": "tapestry-x", "uid": "own"}, "spec": {"nodeName": "n1", "hostNetwork": true}}`)
	n.loseKeeper()
	if err := hosttap.Remove(nil); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.until("the agent's pod is evicted", func() bool { return !s.Has("pods", "kube-system", "tapestry-x") })
	const remedy = "kubectl -n kube-system delete pod tapestry-x"
	if got := n.missing(); !strings.HasPrefix(got, "host: processes of this node, kubelet's probes among them, do not reach pods and Services: ") || !strings.Contains(got, remedy) {
		t.Errorf("missing is %q", got)
	}
	if got := n.problems(); !strings.HasPrefix(got, "Node n1: processes of this node") || !strings.Contains(got, remedy) {
		t.Errorf("the first problem is not that of the node itself:\n%s", got)
	}
	n.until("nothing is scheduled there", func() bool { _, unavailable := s.NodeSays("n1"); return unavailable == "True" })
	// The pod that comes in its place has no host TAP either: its steps are not run once more.
	n.kill()
	s.PutJSON("pods", `{"metadata": {"namespace": "kube-system", "name": "tapestry-x", "uid": "next"}, "spec": {"nodeName": "n1", "hostNetwork": true}}`)
	n.source[slices.Index(n.source, "own")] = "next"
	n.start()
	n.until("it is told again", func() bool { return strings.HasPrefix(n.missing(), "host: ") })
	tried := n.counters().Of("tapestry_evictions_total")
	// The steps are run by hand.
	n.makeHostTAP("10.244.1.0/24")
	n.until("the node is whole", func() bool { _, unavailable := s.NodeSays("n1"); return n.missing() == "" && unavailable == "False" })
	if tried["evicted"]+tried["failed"]+tried["refused"] != 0 || !s.Has("pods", "kube-system", "tapestry-x") {
		t.Errorf("a pod was evicted whose steps are of no use: %v", tried)
	}
}

// TestNodeMadeAnew gives the Node another range: the host TAP has addresses of the old one. That is the node's first
// problem until the init step has run again, and the agent goes on without being started anew.
func TestNodeMadeAnew(t *testing.T) {
	n, s := newHealed(t)
	s.Answer("evictions", 403)
	old := n.sandbox("c1", "old")
	old.works("ADD")
	s.PutJSON("pods", runningPod(old, true))
	s.Delete(s.Object("nodes", allocatedNode))
	s.PutJSON("nodes", otherNode)
	n.ended()
	n.start()
	n.until("the wrong addresses are told first", func() bool {
		return strings.HasPrefix(n.missing(), "host: ") && strings.HasPrefix(n.problems(), "Node n1: processes of this node")
	})
	if got := n.problems(); !strings.Contains(got, "the host TAP has the addresses [10.244.1.2], but the node's podCIDRs need [10.244.9.2]") ||
		!strings.Contains(got, "kubectl -n kube-system delete pod tapestry-x") || !strings.Contains(got, "default/old: its address 10.244.1.3 is from before") {
		t.Errorf("told is\n%s", got)
	}
	n.makeHostTAP("10.244.9.0/24")
	n.until("the pod of the old range is left", func() bool {
		return strings.HasPrefix(n.missing(), "pods: 1 pod with addresses from before the node's ranges changed (default/old):")
	})
	n.until("it is said on the Pod", func() bool { return strings.Contains(s.Events(), "Pod old: its address 10.244.1.3 is from before") })
	s.Answer("evictions", 0)
	n.kill() // ends the rest after the refusal
	n.start()
	n.until("it is evicted", func() bool { return !s.Has("pods", "default", "old") })
	n.until("it is said on the Node, as long as the sandbox is there", func() bool {
		told, _ := s.NodeSays("n1")
		return n.missing() == "" && strings.Contains(told[kube.ProblemsAnnotation], "10.244.1.3 is from before")
	})
	old.works("DEL")
	n.until("nothing is said any more", func() bool {
		told, _ := s.NodeSays("n1")
		return n.missing() == "" && told[kube.ProblemsAnnotation] == "[]"
	})
}

// TestIngressPortComesBack has another program on the port of Ingress when the agent starts, which costs Ingress alone,
// and only for as long.
func TestIngressPortComesBack(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	n := newMachine(t)
	n.source = append(n.source, "--ingress-http", other.Addr().String())
	n.start()
	n.until("it is told, and the node is ready all the same", func() bool {
		return n.missing() == "" && strings.HasPrefix(n.problems(), "Node n1: Ingress is not served at "+other.Addr().String())
	})
	other.Close()
	n.until("Ingress is served, and nothing is told any more", func() bool {
		c, err := net.Dial("tcp", other.Addr().String())
		if err != nil {
			return false
		}
		c.Close()
		return n.problems() == ""
	})
}
