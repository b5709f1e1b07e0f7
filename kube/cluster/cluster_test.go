package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/kube/cluster/servers"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/test/await"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// view runs a Cluster and remembers what it delivers.
type view struct {
	*Cluster
	t    *testing.T
	stop func()

	mu sync.Mutex
	// mu guards the rest.
	changed   *sync.Cond
	objs      kube.Objects
	problems  []kube.Problem
	delivered int
}

// see starts a Cluster for node n1 with the server s.
func see(t *testing.T, s *clustertest.Server, change ...func(*Options)) *view {
	t.Helper()
	o := Options{Node: "n1", Kubeconfig: s.Kubeconfig(), State: t.TempDir(), SecretsOf: translate.IngressSecrets, Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	v := &view{Cluster: c, t: t}
	v.changed = sync.NewCond(&v.mu)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- c.Run(ctx, func(objs kube.Objects, problems []kube.Problem) {
			v.mu.Lock()
			defer v.mu.Unlock()
			// A change that arrives while a burst ends is in its snapshot, and in another one that is the same.
			if v.delivered == 0 || !reflect.DeepEqual(objs, v.objs) || !reflect.DeepEqual(problems, v.problems) {
				v.delivered++
			}
			v.objs, v.problems = objs, problems
			v.changed.Broadcast()
		})
	}()
	v.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v", err)
		}
	})
	t.Cleanup(v.stop)
	return v
}

// until waits for a snapshot for which ok returns true, and returns it.
func (v *view) until(what string, ok func(objs *kube.Objects, problems []kube.Problem) bool) kube.Objects {
	v.t.Helper()
	deadline := time.Now().Add(await.Patience)
	timeout := time.AfterFunc(await.Patience+time.Second, v.changed.Broadcast)
	defer timeout.Stop()
	v.mu.Lock()
	defer v.mu.Unlock()
	for v.delivered == 0 || !ok(&v.objs, v.problems) {
		if time.Now().After(deadline) {
			v.t.Fatalf("not so: %s; after %d snapshots there are %s, problems %v, health %+v", what, v.delivered, names(&v.objs), v.problems, v.State())
		}
		v.changed.Wait()
	}
	return v.objs
}

// count returns how many snapshots have come that differ from the one before.
func (v *view) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.delivered
}

func (v *view) untilNames(want string) kube.Objects {
	v.t.Helper()
	return v.until(want, func(objs *kube.Objects, _ []kube.Problem) bool { return names(objs) == want })
}

func names(objs *kube.Objects) string {
	var list []string
	for obj := range objs.All() {
		list = append(list, strings.TrimPrefix(kube.RefOf(obj).String(), "Service "))
	}
	return strings.Join(list, ", ")
}

func service(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.7", ClusterIPs: []string{"10.96.0.7"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

// node returns a Node with a range of its own. name is n1, n2 and so on.
func node(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{kube.PublicKeyAnnotation: "key of " + name}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.244." + strings.TrimPrefix(name, "n") + ".0/24"}},
	}
}

// both runs a test on a server that lists in pages, and on one that streams lists.
func both(t *testing.T, f func(*testing.T, *clustertest.Server)) {
	for _, streams := range []bool{false, true} {
		t.Run(fmt.Sprintf("streams=%v", streams), func(t *testing.T) {
			t.Parallel()
			s := clustertest.New(t)
			s.Streams = streams
			f(t, s)
		})
	}
}

func TestSnapshots(t *testing.T) {
	both(t, func(t *testing.T, s *clustertest.Server) {
		s.Put(service("b"), service("a"), node("n1"))
		other := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "elsewhere"}, Spec: corev1.PodSpec{NodeName: "n2"}}
		here := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "here"}, Spec: corev1.PodSpec{NodeName: "n1"}}
		s.Put(other, here)
		v := see(t, s)
		first := v.untilNames("Node n1, Pod x/here, x/a, x/b")
		s.Put(service("c"))
		second := v.untilNames("Node n1, Pod x/here, x/a, x/b, x/c")
		if !kube.Same(first.Nodes, second.Nodes) || first.Services[0] != second.Services[0] || first.Services[1] != second.Services[1] {
			t.Error("what has not changed is not shared")
		}
		if len(first.Services) != 2 {
			t.Errorf("a snapshot has changed after it was given out: %s", names(&first))
		}
		changed := service("a")
		changed.Spec.Ports[0].Port = 81
		s.Put(changed)
		third := v.until("port 81", func(objs *kube.Objects, _ []kube.Problem) bool { return objs.Services[0].Spec.Ports[0].Port == 81 })
		if third.Services[1] != second.Services[1] || second.Services[0].Spec.Ports[0].Port != 80 {
			t.Error("a change of one Service has changed another, or a snapshot that was given out")
		}
		s.Delete(service("a"), service("b"))
		v.untilNames("Node n1, Pod x/here, x/c")
		await.Until(t, "all watches are open", func() bool { return v.State().Age == 0 })
		if h := v.State(); !h.Synced || h.Age != 0 || h.Err != nil || h.Server != strings.TrimPrefix(s.URL, "http://") || len(h.Waiting) > 0 {
			t.Errorf("health %+v", h)
		}
	})
}

// Nothing is delivered before everything has been read, and State says what is missing.
func TestWaitsForAll(t *testing.T) {
	t.Parallel()
	for _, resource := range []string{"services", "endpointslices", "nodes", "pods", "ingresses", "servicecidrs", "networkpolicies"} {
		t.Run(resource, func(t *testing.T) {
			t.Parallel()
			s := clustertest.New(t)
			s.Put(service("a"))
			s.Answer(resource, http.StatusInternalServerError)
			v := see(t, s)
			await.Until(t, "waiting", func() bool {
				waiting := v.State().Waiting
				return len(waiting) == 1 && strings.Contains(strings.ToLower(waiting[0]), resource) && strings.Contains(waiting[0], "answered by the test")
			})
			if n := v.count(); n > 0 || v.State().Synced {
				t.Errorf("%d snapshots without %s", n, resource)
			}
			s.Answer(resource, 0)
			v.untilNames("x/a")
		})
	}
}

// There may be more objects than one answer holds.
func TestPages(t *testing.T) {
	both(t, func(t *testing.T, s *clustertest.Server) {
		const n = 2*pageSize + 7
		for i := range n {
			s.Put(service(fmt.Sprintf("s%04d", i)))
		}
		v := see(t, s)
		objs := v.until("all", func(*kube.Objects, []kube.Problem) bool { return true })
		if len(objs.Services) != n || !slices.IsSortedFunc(objs.Services, func(a, b *corev1.Service) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("%d Services at first, want %d, sorted", len(objs.Services), n)
		}
		lists := 0
		for _, r := range s.Requests() {
			if r == "GET services list" {
				lists++
			}
		}
		if want := map[bool]int{false: 3, true: 0}[s.Streams]; lists != want {
			t.Errorf("%d lists of Services, want %d", lists, want)
		}
	})
}

// A change of fields that nobody reads is no change, and a burst of changes is delivered together.
func TestQuiet(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"), service("a"))
	v := see(t, s)
	v.untilNames("Node n1, x/a")
	before := v.count()
	ready := func(beat int64) *corev1.Node {
		n := node("n1")
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Unix(beat, 0)}}
		return n
	}
	for i := range 20 {
		n := ready(int64(i))
		n.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: fmt.Sprint(i)}}
		s.Put(n)
	}
	for i := range 200 {
		s.Put(service(fmt.Sprintf("b%03d", i)))
	}
	// The first change of the Node is one: it becomes Ready.
	v.until("all", func(objs *kube.Objects, _ []kube.Problem) bool {
		return len(objs.Services) == 201 && len(objs.Nodes[0].Status.Conditions) > 0
	})
	if n := v.count() - before; n > 40 {
		t.Errorf("%d snapshots of 200 changes in a burst", n)
	}
	before = v.count()
	n := ready(20)
	n.Status.Images = []corev1.ContainerImage{{Names: []string{"an image"}}}
	s.Put(n)
	s.Put(service("c")) // changed later: once c is there, the change of n has been handled
	v.until("c", func(objs *kube.Objects, _ []kube.Problem) bool { return len(objs.Services) == 202 })
	if n := v.count() - before; n != 1 {
		t.Errorf("%d snapshots, want one", n)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(service("a"), &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "i"}})
	s.Answer("servicecidrs", http.StatusNotFound) // as before Kubernetes 1.33
	s.Answer("ingresses", http.StatusForbidden)
	v := see(t, s)
	refused := func(problems []kube.Problem) bool {
		return slices.ContainsFunc(problems, func(p kube.Problem) bool {
			return strings.Contains(p.Message, "does not let the agent read Ingresses") && p.Severity == kube.Warning
		})
	}
	v.until("a refusal", func(objs *kube.Objects, problems []kube.Problem) bool {
		return names(objs) == "x/a" && refused(problems) && len(problems) == 2 && strings.Contains(fmt.Sprint(problems), "--service-cidr")
	})
	s.Answer("ingresses", 0)
	v.until("Ingress", func(objs *kube.Objects, problems []kube.Problem) bool {
		return names(objs) == "x/a, Ingress x/i" && !refused(problems)
	})
}

// A token that is not accepted yet is not a refusal of the kind: a snapshot without the kind would be wrong.
func TestUnauthorized(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(service("a"))
	s.Answer("servicecidrs", http.StatusUnauthorized)
	v := see(t, s)
	await.Until(t, "waiting", func() bool {
		waiting := v.State().Waiting
		return len(waiting) == 1 && strings.HasPrefix(waiting[0], "ServiceCIDRs: ")
	})
	if n := v.count(); n > 0 {
		t.Errorf("%d snapshots without them", n)
	}
	s.Answer("servicecidrs", 0)
	v.untilNames("x/a")
}

// Without a kind that every node needs there is no snapshot, and State says that the kind is refused.
func TestRefusedNodes(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Answer("nodes", http.StatusForbidden)
	v := see(t, s)
	await.Until(t, "waiting", func() bool {
		waiting := v.State().Waiting
		return len(waiting) == 1 && strings.HasPrefix(waiting[0], "Nodes: ") && strings.Contains(waiting[0], "forbidden")
	})
	s.Answer("nodes", 0)
	v.untilNames("")
}

func TestConfiguredRanges(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	v := see(t, s, func(o *Options) { o.ServiceCIDRs = addresstest.Prefixes("10.43.0.0/16") })
	v.untilNames("ServiceCIDR configured")
	s.Put(&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"127.0.0.0/8"}}})
	v.until("the server's own range, in which the configured address lies", func(objs *kube.Objects, problems []kube.Problem) bool {
		return names(objs) == "ServiceCIDR kubernetes" && len(problems) == 1 && strings.Contains(problems[0].Message, "--api-server")
	})
}

// The addresses of API servers are learned, and outlive the agent.
func TestLearns(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	port, name := int32(6443), "https"
	s.Put(&discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.1"}}, {Addresses: []string{"192.0.2.2"}}},
	}, service("a"))
	dir := t.TempDir()
	v := see(t, s, func(o *Options) { o.State = dir })
	v.until("the slice", func(objs *kube.Objects, _ []kube.Problem) bool { return objs.EndpointSlices.Len() == 1 })
	v.stop()
	// The configured server is gone. The next agent reads the learned addresses from disk, and tries them.
	again, err := New(Options{Node: "n1", Kubeconfig: s.Kubeconfig(), Servers: []string{"http://127.0.0.1:1"}, State: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := again.rest.Get().AbsPath(servers.ProbePath).Do(ctx).Error(); err == nil || !strings.Contains(err.Error(), "192.0.2.1:6443") {
		t.Errorf("the probe said %v", err)
	}
	again.close()
}

func TestPodIPs(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	pod := func(name, node, ips string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, Annotations: map[string]string{kube.PodIPsAnnotation: ips}},
			Spec:       corev1.PodSpec{NodeName: node},
		}
	}
	s.Put(pod("a", "n1", "10.244.1.5"), pod("late", "n2", "10.244.1.6"))
	v := see(t, s)
	v.untilNames("Pod x/a")
	s.Requests()
	for name, want := range map[string]string{"a": "10.244.1.5", "late": "10.244.1.6"} {
		if got, err := v.PodIPs(t.Context(), "x", name); err != nil || got != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	asked := slices.DeleteFunc(s.Requests(), func(r string) bool { return !strings.HasPrefix(r, "GET pods/") })
	if len(asked) != 1 || asked[0] != "GET pods/late" {
		t.Errorf("requests %q", asked)
	}
	if got, err := v.PodIPs(t.Context(), "x", "none"); err != nil || got != "" {
		t.Errorf("got %q, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.PodIPs(ctx, "x", "none"); err == nil || !strings.Contains(err.Error(), "pod x/none") {
		t.Errorf("got %v", err)
	}
}
