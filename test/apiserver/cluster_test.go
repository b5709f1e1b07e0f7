package apiserver_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster"
	"tapestry.dev/tapestry/kube/cluster/pins"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/test/await"
)

// agent is the part of an agent that talks to the cluster.
type agent struct {
	*cluster.Cluster
	t    *testing.T
	stop func()

	mu sync.Mutex
	// mu guards the fields below.
	changed  *sync.Cond
	objs     kube.Objects
	problems []kube.Problem
	count    int
}

// newAgent starts an agent with the rights of a real one: the token of a pod of the DaemonSet's service account on that
// node.
func newAgent(t *testing.T, p *controlPlane, node string) *agent {
	t.Helper()
	c, err := cluster.New(cluster.Options{
		Node: node, Servers: []string{p.url()}, Credentials: p.credentials(node), State: t.TempDir(),
		SecretsOf: translate.IngressSecrets, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{Cluster: c, t: t}
	a.changed = sync.NewCond(&a.mu)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx, func(objs kube.Objects, problems []kube.Problem) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.objs, a.problems = objs, problems
			a.count++
			a.changed.Broadcast()
		})
	}()
	a.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(a.stop)
	return a
}

// sees waits for a snapshot that ok accepts, and returns it.
func (a *agent) sees(what string, ok func(objs *kube.Objects, problems []kube.Problem) bool) kube.Objects {
	a.t.Helper()
	start := time.Now()
	timeout := time.AfterFunc(time.Minute, a.changed.Broadcast)
	defer timeout.Stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.count == 0 || !ok(&a.objs, a.problems) {
		if time.Since(start) >= time.Minute {
			a.t.Fatalf("not seen: %s; problems %v, health %+v", what, a.problems, a.State())
		}
		a.changed.Wait()
	}
	return a.objs
}

func hasService(objs *kube.Objects, name string) *corev1.Service {
	i := slices.IndexFunc(objs.Services, func(s *corev1.Service) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return objs.Services[i]
}

// node makes a Node. No controller misses its kubelet for some time.
func (p *controlPlane) node(name, address string) {
	p.t.Helper()
	p.must(http.MethodPost, "/api/v1/nodes", corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, nil)
	now := metav1.Now()
	p.must(http.MethodPatch, "/api/v1/nodes/"+name+"/status", map[string]any{"status": corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: now, LastTransitionTime: now}},
	}}, nil)
}

// pod makes a pod on a node. The pod runs when it has an address.
func (p *controlPlane) pod(node string, pod *corev1.Pod, address string) *corev1.Pod {
	p.t.Helper()
	pod.Spec.NodeName = node
	pod.Spec.Containers = []corev1.Container{{Name: "c", Image: "example.com/x:1"}}
	path := "/api/v1/namespaces/" + pod.Namespace + "/pods"
	out := &corev1.Pod{}
	p.must(http.MethodPost, path, pod, out)
	if address != "" {
		p.must(http.MethodPatch, path+"/"+pod.Name+"/status", map[string]any{"status": corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		}}, nil)
	}
	return out
}

// credentials returns a directory like the one that Kubernetes mounts into an agent's pod on that node.
func (p *controlPlane) credentials(node string) string { return p.credentialsOf("tapestry", node) }

// credentialsOf returns that of a pod of a service account.
func (p *controlPlane) credentialsOf(account, node string) string {
	p.t.Helper()
	name := account + "-" + node
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}}
	pod.Spec.ServiceAccountName = account
	var found corev1.Pod
	if p.call(http.MethodGet, "/api/v1/namespaces/kube-system/pods/"+name, nil, &found) != nil {
		found = *p.pod(node, pod, "")
	}
	var token struct{ Status struct{ Token string } }
	p.must(http.MethodPost, "/api/v1/namespaces/kube-system/serviceaccounts/"+account+"/token", map[string]any{"spec": map[string]any{
		"expirationSeconds": 3600, "boundObjectRef": map[string]any{"kind": "Pod", "apiVersion": "v1", "name": name, "uid": found.UID},
	}}, &token)
	dir := p.t.TempDir()
	ca := p.config.CAData
	if len(ca) == 0 {
		var err error
		if ca, err = os.ReadFile(p.config.CAFile); err != nil {
			p.t.Fatal(err)
		}
	}
	for file, data := range map[string][]byte{"token": []byte(token.Status.Token), "ca.crt": ca} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	return dir
}

func service(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
}

const services = "/api/v1/namespaces/default/services"

// rights applies the rights that Tapestry's manifests give to agents.
func (p *controlPlane) rights() {
	p.t.Helper()
	p.apply("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
}

// mayRead lets agents read the Secrets of a namespace, in the way of the chart and of deploy/README.md.
func (p *controlPlane) mayRead(namespace string) {
	p.t.Helper()
	const path = "/apis/rbac.authorization.k8s.io/v1/namespaces/"
	p.must(http.MethodPost, path+namespace+"/roles", rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "tapestry-secrets"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get", "list", "watch"}}},
	}, nil)
	p.must(http.MethodPost, path+namespace+"/rolebindings", rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "tapestry-secrets"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "tapestry-secrets"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "tapestry"}},
	}, nil)
}

// TestCluster: an agent with the rights of the manifests sees all of a real cluster, and publishes its own state.
func TestCluster(t *testing.T) {
	p := start(t)
	p.rights()
	p.node("n1", "192.0.2.1")
	p.node("n2", "192.0.2.2")
	p.must(http.MethodPost, services, service("web"), nil)
	a := newAgent(t, p, "n1")

	objs := a.sees("both nodes with their podCIDRs", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(objs.Nodes) == 2 && len(objs.Nodes[0].Spec.PodCIDRs) == 1 && len(objs.Nodes[1].Spec.PodCIDRs) == 1 && hasService(objs, "web") != nil && len(problems) == 0
	})
	if len(objs.ServiceCIDRs) != 1 || hasService(&objs, "kubernetes") == nil {
		t.Errorf("ServiceCIDRs %v, Services %v", objs.ServiceCIDRs, objs.Services)
	}

	// The real controllers make the pod an endpoint.
	address := netip.MustParsePrefix(objs.Nodes[1].Spec.PodCIDRs[0]).Addr().Next().Next().Next().String()
	began := time.Now()
	p.pod("n2", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{"app": "web"}}}, address)
	objs = a.sees("the endpoint", func(objs *kube.Objects, _ []kube.Problem) bool {
		return slices.ContainsFunc(objs.EndpointSlices.Slice(), func(s *discoveryv1.EndpointSlice) bool {
			return strings.HasPrefix(s.Name, "web-") && len(s.Endpoints) == 1 && s.Endpoints[0].Addresses[0] == address
		})
	})
	t.Logf("from the pod to the agent's snapshot: %v", time.Since(began).Round(time.Millisecond))
	if len(objs.Pods) != 1 || objs.Pods[0].Name != "tapestry-n1" {
		t.Errorf("pods %v: an agent sees those of its node", objs.Pods)
	}
	r := translate.Translate(objs, translate.Options{Node: "n1"})
	found := false
	for _, s := range r.Services.Services.All() {
		found = found || s.Name == "web" && len(s.ClusterIPs) == 1 && len(s.Endpoints) == 1 && s.Endpoints[0].Node == "n2" && s.Endpoints[0].Ready
	}
	if !found {
		t.Errorf("the Service came to %+v", r.Services.Services.Slice())
	}

	// The agent's state is published once, and the node accepts pods.
	st := kube.NodeStatus{Name: "n1", PublicKey: "key", Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), Features: []string{"partial-checksums"}, Ready: true}
	a.Publish(st)
	var n corev1.Node
	await.Until(t, "published", func() bool {
		n = corev1.Node{} // decoding JSON into an old object would merge the two
		p.must(http.MethodGet, "/api/v1/nodes/n1", nil, &n)
		return n.Annotations[kube.PublicKeyAnnotation] == "key" && slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionFalse
		})
	})
	if n.Annotations[kube.EndpointAnnotation] != "192.0.2.1:51820" || n.Annotations[kube.FeaturesAnnotation] != "partial-checksums" || len(n.Status.Conditions) != 2 {
		t.Errorf("annotations %v, conditions %v", n.Annotations, n.Status.Conditions)
	}
	// Controllers write taints and annotations of their own meanwhile.
	written := func() (string, []corev1.NodeCondition) {
		var list []string
		for k, v := range n.Annotations {
			if strings.HasPrefix(k, "tapestry.dev/") {
				list = append(list, k+"="+v)
			}
		}
		slices.Sort(list)
		return strings.Join(list, " "), n.Status.Conditions
	}
	annotations, conditions := written()
	a.Publish(st)
	p.must(http.MethodPost, services, service("marker"), nil)
	a.sees("the marker", func(objs *kube.Objects, _ []kube.Problem) bool { return hasService(objs, "marker") != nil })
	n = corev1.Node{}
	p.must(http.MethodGet, "/api/v1/nodes/n1", nil, &n)
	if a, c := written(); a != annotations || !reflect.DeepEqual(c, conditions) {
		t.Errorf("the Node was changed though there was nothing new to say: %s, %v -> %s, %v", annotations, conditions, a, c)
	}

	// An Ingress with its Secret, which no agent may read before it is allowed to, a policy, and an address that a pod
	// asks for.
	p.must(http.MethodPost, "/api/v1/namespaces/default/secrets", corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "cert"}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": []byte("c"), "tls.key": []byte("k")},
	}, nil)
	class := "tapestry"
	p.must(http.MethodPost, "/apis/networking.k8s.io/v1/namespaces/default/ingresses", networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Name: "i"}, Spec: networkingv1.IngressSpec{
			IngressClassName: &class, TLS: []networkingv1.IngressTLS{{SecretName: "cert", Hosts: []string{"example.com"}}},
			DefaultBackend: &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}}},
		},
	}, nil)
	p.must(http.MethodPost, "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}, nil)
	cert := kube.Ref{Kind: "Secret", Namespace: "default", Name: "cert"}
	objs = a.sees("the policy, and that the Secret may not be read", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(objs.Secrets) == 0 && slices.Contains(objs.Withheld, cert) && len(objs.NetworkPolicies) == 1 && len(objs.Namespaces) > 0 && len(problems) == 0
	})
	if told := translate.Check(objs); !slices.ContainsFunc(told, func(p kube.Problem) bool {
		return p.Object.Name == "i" && p.Field == "spec.tls[0].secretName" && strings.Contains(p.Message, "by a Role in namespace default")
	}) {
		t.Errorf("the Ingress has the problems %v", told)
	}
	p.mayRead("default")
	a.stop() // the next agent asks at once
	a = newAgent(t, p, "n1")
	objs = a.sees("Secret and policy", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(objs.Secrets) == 1 && len(objs.Withheld) == 0 && string(objs.Secrets[0].Data["tls.key"]) == "k" && len(objs.NetworkPolicies) == 1 && len(problems) == 0
	})
	p.pod("n1", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "fixed", Annotations: map[string]string{kube.PodIPsAnnotation: "10.244.0.77"}}}, "")
	if ips, err := a.PodIPs(t.Context(), "default", "fixed"); err != nil || ips != "10.244.0.77" {
		t.Errorf("the pod asks for %q, %v", ips, err)
	}

	// The API server accepts events and shows them with the object.
	a.Report(&objs, []kube.Problem{{Severity: kube.Error, Object: kube.Ref{Kind: "Service", Namespace: "default", Name: "web"}, Field: "spec.x", Message: "cannot be served"}}, nil)
	var events corev1.EventList
	await.Until(t, "events", func() bool {
		events = corev1.EventList{}
		p.must(http.MethodGet, "/api/v1/namespaces/default/events", nil, &events)
		events.Items = slices.DeleteFunc(events.Items, func(e corev1.Event) bool { return e.Source.Component != "tapestry" })
		return len(events.Items) == 1
	})
	for _, e := range events.Items {
		what := e.InvolvedObject.Kind + " " + e.Message
		if what != "Service spec.x: cannot be served" {
			t.Errorf("event %s", what)
		}
	}
	if h := a.State(); !h.Synced || h.Age != 0 || h.Err != nil {
		t.Errorf("health %+v", h)
	}
}

// TestRights: an agent may change only its own Node. Therefore a changed key of another Node is believed.
func TestRights(t *testing.T) {
	p := start(t)
	p.rights()
	p.node("n1", "192.0.2.1")
	p.node("n2", "192.0.2.2")
	a := newAgent(t, p, "n1")
	a.sees("the nodes", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(objs.Nodes) == 2 && len(problems) == 0
	})
	p.must(http.MethodPatch, "/api/v1/nodes/n2", keyPatch("two"), nil)
	a.sees("the key", func(objs *kube.Objects, problems []kube.Problem) bool {
		return objs.Nodes[1].Annotations[kube.PublicKeyAnnotation] == "two" && len(problems) == 0
	})
	// What n1's token may do. A policy takes a moment to take effect.
	thief := p.as(p.credentials("n1"))
	const neither = "neither spec nor labels"
	stolen := request{"another node's key", http.MethodPatch, "/api/v1/nodes/n2", keyPatch("stolen"), "an agent may change its own Node, n1, and no other"}
	await.Until(t, "another node's key cannot be changed", func() bool { return thief.differs(stolen) == "" })
	thief.all(t,
		request{"the spec", http.MethodPatch, "/api/v1/nodes/n1", map[string]any{"spec": map[string]any{"unschedulable": true}}, neither},
		request{"labels", http.MethodPatch, "/api/v1/nodes/n1", map[string]any{"metadata": map[string]any{"labels": map[string]string{"a": "b"}}}, neither},
		request{"other annotations", http.MethodPatch, "/api/v1/nodes/n1", map[string]any{"metadata": map[string]any{"annotations": map[string]string{"a": "b"}}}, "begin with tapestry.dev/"},
		request{"addresses", http.MethodPatch, "/api/v1/nodes/n1/status", map[string]any{"status": map[string]any{"addresses": []any{}}}, "NetworkUnavailable"},
		request{"Nodes go", http.MethodDelete, "/api/v1/nodes/n2", nil, forbidden},
		request{"pods go", http.MethodDelete, "/api/v1/namespaces/kube-system/pods/agent-n2", nil, forbidden},
		request{"Services go", http.MethodDelete, services + "/kubernetes", nil, forbidden},
		request{"Services are made", http.MethodPost, services, service("x"), forbidden},
		request{"Secrets", http.MethodGet, "/api/v1/namespaces/kube-system/secrets", nil, forbidden},
		request{"Namespaces", http.MethodGet, "/api/v1/namespaces", nil, ""},
		request{"Namespaces go", http.MethodDelete, "/api/v1/namespaces/default", nil, forbidden},
		request{"a Secret by name", http.MethodGet, "/api/v1/namespaces/default/secrets/x", nil, forbidden},
		request{"its own key", http.MethodPatch, "/api/v1/nodes/n1", keyPatch("one"), ""},
	)
	p.must(http.MethodPatch, "/api/v1/nodes/n2", keyPatch("three"), nil)
	a.sees("the new key", func(objs *kube.Objects, problems []kube.Problem) bool {
		return objs.Nodes[1].Annotations[kube.PublicKeyAnnotation] == "three" && len(problems) == 0
	})
	p.must(http.MethodDelete, paths["ValidatingAdmissionPolicyBinding"]+pins.Guard, nil, nil)
	p.must(http.MethodPatch, "/api/v1/nodes/n2", keyPatch("four"), nil)
	a.sees("a refusal", func(objs *kube.Objects, problems []kube.Problem) bool {
		return objs.Nodes[1].Annotations[kube.PublicKeyAnnotation] == "three" && len(problems) == 1 && strings.Contains(problems[0].Message, "has changed to four")
	})
}

func keyPatch(key string) any {
	return map[string]any{"metadata": map[string]any{"annotations": map[string]string{kube.PublicKeyAnnotation: key}}}
}

// TestRestarts: the control plane is killed and restarted, and then restarted with an older state of its etcd.
func TestRestarts(t *testing.T) {
	p := start(t)
	p.rights()
	p.node("n1", "192.0.2.1")
	p.must(http.MethodPost, services, service("old"), nil)
	a := newAgent(t, p, "n1")
	before := a.sees("the first Service", func(objs *kube.Objects, _ []kube.Problem) bool { return hasService(objs, "old") != nil })

	p.stop()
	backup := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(backup, os.DirFS(p.dir)); err != nil {
		t.Fatal(err)
	}
	await.Until(t, "the agent has noticed", func() bool { h := a.State(); return h.Age > 0 && h.Err != nil && h.Synced })
	a.Publish(kube.NodeStatus{Name: "n1", PublicKey: "said while nobody listened", Ready: true})
	p.start()
	began := time.Now()
	for i := range 20 { // versions that the backup does not have
		p.must(http.MethodPost, services, service(fmt.Sprintf("new-%d", i)), nil)
	}
	after := a.sees("the new Services", func(objs *kube.Objects, _ []kube.Problem) bool { return hasService(objs, "new-19") != nil })
	t.Logf("seen %v after the server was back", time.Since(began).Round(time.Millisecond))
	if hasService(&before, "old") != hasService(&after, "old") {
		t.Error("a Service that has not changed is not the same object any more")
	}
	await.Until(t, "what was said meanwhile is there", func() bool {
		var n corev1.Node
		p.must(http.MethodGet, "/api/v1/nodes/n1", nil, &n)
		return n.Annotations[kube.PublicKeyAnnotation] == "said while nobody listened"
	})
	await.Until(t, "the state is fresh again", func() bool { return a.State().Age == 0 })

	p.stop()
	if err := os.RemoveAll(filepath.Join(p.dir, "etcd")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(p.dir, "etcd"), os.DirFS(filepath.Join(backup, "etcd"))); err != nil {
		t.Fatal(err)
	}
	p.start()
	began = time.Now()
	restored := a.sees("the Services are gone that the restored etcd never had", func(objs *kube.Objects, _ []kube.Problem) bool {
		return hasService(objs, "new-0") == nil && hasService(objs, "old") != nil
	})
	t.Logf("seen %v after the server was back with an older state", time.Since(began).Round(time.Millisecond))
	if hasService(&before, "old") != hasService(&restored, "old") {
		t.Error("a Service that has not changed is not the same object any more")
	}
	p.must(http.MethodPost, services, service("later"), nil)
	a.sees("what comes after", func(objs *kube.Objects, _ []kube.Problem) bool { return hasService(objs, "later") != nil })
	await.Until(t, "the key is said again", func() bool {
		var n corev1.Node
		p.must(http.MethodGet, "/api/v1/nodes/n1", nil, &n)
		return n.Annotations[kube.PublicKeyAnnotation] == "said while nobody listened"
	})
}
