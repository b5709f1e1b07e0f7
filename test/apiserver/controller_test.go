package apiserver_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/connect"
	"tapestry.dev/tapestry/kube/cluster/control"
	"tapestry.dev/tapestry/kube/cluster/lease"
	"tapestry.dev/tapestry/kube/controller"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/test/await"
)

const (
	group        = "/apis/tapestry.dev/v1alpha1/"
	addressPools = group + "addresspools"
)

// process is a controller with the rights of a real one: the token of a pod of the Deployment's service account.
type process struct {
	elector lease.Elector
	options control.Options
	to      *connect.Connection
}

// newProcess returns a controller that does nothing yet.
func newProcess(t *testing.T, p *controlPlane, name string) *process {
	t.Helper()
	to, err := connect.To(connect.Options{Servers: []string{p.url()}, Credentials: p.credentialsOf("tapestry-controller", name)})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	link := to.Link(log)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { link.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait(); to.Close() })
	decide := func(objs kube.Objects) (kube.Objects, []kube.Problem) {
		out, problems := controller.LoadBalancers(objs, controller.Options{Default: true, Now: time.Now()})
		return controller.AnnounceStatus(controller.IngressStatus(out), time.Now()), problems
	}
	return &process{
		elector: lease.Elector{Namespace: "kube-system", Name: "tapestry-controller", Identity: name, Rest: to.Rest, Log: log},
		options: control.Options{Name: name, Rest: to.Rest, Link: link, Log: log, Decide: decide}, to: to,
	}
}

// decides lets it decide, until the returned func is called, whoever else does.
func (c *process) decides(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); control.Run(ctx, c.options) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

// controllerRights applies the rights that Tapestry's manifests give to the controller, and waits for its kinds.
func (p *controlPlane) controllerRights() {
	p.t.Helper()
	p.rights()
	p.apply("CustomResourceDefinition", "Role", "RoleBinding", "IngressClass")
	for _, list := range []string{"addresspools", "l2advertisements", "bgppeers", "bgpadvertisements", "egressaddresses"} {
		await.Until(p.t, list+" are served", func() bool { return p.call(http.MethodGet, group+list, nil, nil) == nil })
	}
}

func addressPool(name string, spec v1alpha1.AddressPoolSpec) *v1alpha1.AddressPool {
	return &v1alpha1.AddressPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: "tapestry.dev/v1alpha1", Kind: "AddressPool"},
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec,
	}
}

func loadBalancer(name string) *corev1.Service {
	s := service(name)
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	return s
}

// addressOf waits until a Service has an address, and returns it.
func (p *controlPlane) addressOf(name string) string {
	p.t.Helper()
	var s corev1.Service
	await.Until(p.t, "Service "+name+" has an address", func() bool {
		s = corev1.Service{}
		p.must(http.MethodGet, services+"/"+name, nil, &s)
		return len(s.Status.LoadBalancer.Ingress) > 0
	})
	return s.Status.LoadBalancer.Ingress[0].IP
}

// TestController: with the rights of the manifests, a controller gives addresses and status, says on objects what it
// cannot give, and the next one goes on where it was.
func TestController(t *testing.T) {
	p := start(t)
	p.controllerRights()
	p.node("n1", "192.0.2.1")
	p.must(http.MethodPost, addressPools, addressPool("own", v1alpha1.AddressPoolSpec{Addresses: []string{"198.51.100.7", "198.51.100.8"}}), nil)
	p.must(http.MethodPost, services, loadBalancer("a"), nil)
	class := "tapestry"
	p.must(http.MethodPost, "/apis/networking.k8s.io/v1/namespaces/default/ingresses", networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: networkingv1.IngressSpec{IngressClassName: &class, DefaultBackend: &networkingv1.IngressBackend{
			Service: &networkingv1.IngressServiceBackend{Name: "a", Port: networkingv1.ServiceBackendPort{Number: 80}}}},
	}, nil)

	stop := newProcess(t, p, "c1").decides(t)
	if got := p.addressOf("a"); got != "198.51.100.7" {
		t.Errorf("a has %s", got)
	}
	finalizers := func() string {
		var s corev1.Service
		p.must(http.MethodGet, services+"/a", nil, &s)
		return strings.Join(s.Finalizers, " ")
	}
	if got := finalizers(); got != controller.Finalizer {
		t.Errorf("a has the finalizers %q", got)
	}
	await.Until(t, "the Ingress has the node's address", func() bool {
		var ing networkingv1.Ingress
		p.must(http.MethodGet, "/apis/networking.k8s.io/v1/namespaces/default/ingresses/web", nil, &ing)
		return len(ing.Status.LoadBalancer.Ingress) == 1 && ing.Status.LoadBalancer.Ingress[0].IP == "192.0.2.1"
	})
	p.must(http.MethodPost, services, loadBalancer("b"), nil)
	if got := p.addressOf("b"); got != "198.51.100.8" {
		t.Errorf("b has %s", got)
	}
	p.must(http.MethodPost, services, loadBalancer("c"), nil)
	await.Until(t, "c says that there is none left, as a condition and as an Event", func() bool {
		var s corev1.Service
		p.must(http.MethodGet, services+"/c", nil, &s)
		var events corev1.EventList
		p.must(http.MethodGet, "/api/v1/namespaces/default/events", nil, &events)
		said := false
		for _, e := range events.Items {
			said = said || e.InvolvedObject.Name == "c" && strings.Contains(e.Message, `no address is left for it in AddressPool "own"`) && e.ReportingController == "tapestry.dev/controller"
		}
		cond := apimeta.FindStatusCondition(s.Status.Conditions, controller.LoadBalancerCondition)
		return said && cond != nil && cond.Status == metav1.ConditionFalse && cond.Reason == "PoolExhausted"
	})
	await.Until(t, "the pool says that it is used up", func() bool {
		var pool v1alpha1.AddressPool
		p.must(http.MethodGet, addressPools+"/own", nil, &pool)
		return pool.Status.Assigned == 2 && apimeta.IsStatusConditionFalse(pool.Status.Conditions, v1alpha1.PoolFree) &&
			apimeta.IsStatusConditionTrue(pool.Status.Conditions, v1alpha1.PoolReady)
	})
	stop()

	// While no controller runs, the pool becomes another, and a Service goes.
	p.must(http.MethodPatch, addressPools+"/own", map[string]any{"spec": map[string]any{"addresses": []string{"203.0.113.5", "198.51.100.8"}}}, nil)
	p.must(http.MethodDelete, services+"/b", nil, nil)
	newProcess(t, p, "c2").decides(t)
	if got := p.addressOf("c"); got != "203.0.113.5" {
		t.Errorf("c has %s", got)
	}
	if got := p.addressOf("a"); got != "198.51.100.7" {
		t.Errorf("a has %s now", got)
	}
	p.must(http.MethodPatch, services+"/a", map[string]any{"spec": map[string]any{"type": "ClusterIP"}}, nil)
	await.Until(t, "a, no load balancer any longer, has no status of one", func() bool {
		var s corev1.Service
		p.must(http.MethodGet, services+"/a", nil, &s)
		return len(s.Status.LoadBalancer.Ingress) == 0 && len(s.Status.Conditions) == 0 && len(s.Finalizers) == 0
	})
	p.must(http.MethodDelete, services+"/c", nil, nil)
	await.Until(t, "c, which is deleted, goes", func() bool { return p.call(http.MethodGet, services+"/c", nil, nil) != nil })
}

// TestPoolsAreValidated: the API server refuses what no controller could understand, with a sentence.
func TestPoolsAreValidated(t *testing.T) {
	p := start(t)
	p.controllerRights()
	for want, spec := range map[string]v1alpha1.AddressPoolSpec{
		"a pool has either addresses or nodes": {},
		"set one of the two":                   {Addresses: []string{"192.0.2.1"}, Nodes: &metav1.LabelSelector{}},
		"expected a prefix like 192.0.2.0/28":  {Addresses: []string{"here"}},
		"a range like 192.0.2.10-192.0.2.19":   {Addresses: []string{"192.0.2.1-192.0.2.2-192.0.2.3"}},
		"should be greater than or equal to 0": {Addresses: []string{"192.0.2.1"}, Priority: -1},
		"spec.addresses[1]: Duplicate value":   {Addresses: []string{"192.0.2.1", "192.0.2.1"}},
	} {
		if err := p.call(http.MethodPost, addressPools, addressPool("x", spec), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", spec, err, want)
		}
	}
	for i, text := range []string{"192.0.2.0/28", "192.0.2.10-192.0.2.19", "192.0.2.77", "2001:db8::/64", "2001:db8::1-2001:db8::f"} {
		p.must(http.MethodPost, addressPools, addressPool(fmt.Sprint("ok", i), v1alpha1.AddressPoolSpec{Addresses: []string{text}}), nil)
	}
}

// TestTwoLeaders: with two controllers that both believe that they lead, every Service has an address of its own in the
// end.
func TestTwoLeaders(t *testing.T) {
	p := start(t)
	p.controllerRights()
	p.must(http.MethodPost, addressPools, addressPool("own", v1alpha1.AddressPoolSpec{Addresses: []string{"198.51.100.0/24"}}), nil)
	newProcess(t, p, "c1").decides(t)
	newProcess(t, p, "c2").decides(t)
	const n = 60
	var making sync.WaitGroup
	for worker := range 4 {
		making.Go(func() {
			for i := worker; i < n; i += 4 {
				if err := p.call(http.MethodPost, services, loadBalancer(fmt.Sprint("s", i)), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	making.Wait()
	await.Until(t, "every Service has an address of its own", func() bool {
		var list corev1.ServiceList
		p.must(http.MethodGet, services, nil, &list)
		seen := map[string]bool{}
		for _, s := range list.Items {
			for _, in := range s.Status.LoadBalancer.Ingress {
				seen[in.IP] = true
			}
		}
		return len(seen) == n
	})
}

// TestLease: one of two leads. When it ends, it gives the Lease back, and the other one leads at once.
func TestLease(t *testing.T) {
	p := start(t)
	p.controllerRights()
	type turn struct {
		name  string
		leads bool
	}
	turns := make(chan turn, 10)
	run := func(name string) (stop func()) {
		e := newProcess(t, p, name).elector
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			err := e.Run(ctx, func(ctx context.Context) {
				turns <- turn{name, true}
				<-ctx.Done()
				turns <- turn{name, false}
			})
			if err != nil {
				t.Error(err)
			}
		}()
		stop = sync.OnceFunc(func() { cancel(); <-done })
		t.Cleanup(stop)
		return stop
	}
	stop := run("first")
	if got := <-turns; got != (turn{"first", true}) {
		t.Fatalf("%+v", got)
	}
	run("second")
	began := time.Now()
	stop()
	for _, want := range []turn{{"first", false}, {"second", true}} {
		if got := <-turns; got != want {
			t.Fatalf("%+v, want %+v", got, want)
		}
	}
	t.Logf("the second leads after %v", time.Since(began))
	var l struct {
		Spec struct {
			HolderIdentity   string
			LeaseTransitions int
		}
	}
	p.must(http.MethodGet, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/tapestry-controller", nil, &l)
	if l.Spec.HolderIdentity != "second" || l.Spec.LeaseTransitions != 1 {
		t.Errorf("the Lease is %+v", l.Spec)
	}
}
