package cluster

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/connect"
	"tapestry.dev/tapestry/kube/cluster/evict"
	"tapestry.dev/tapestry/kube/cluster/pins"
	"tapestry.dev/tapestry/kube/cluster/saved"
	"tapestry.dev/tapestry/kube/cluster/servers"
	"tapestry.dev/tapestry/kube/cluster/tell"
	"tapestry.dev/tapestry/roll"
)

// Options configures New.
type Options struct {
	// Node is the name of this node.
	Node string
	// Servers lists the URLs of the API servers, like "https://10.0.0.1:6443". When it is empty, the kubeconfig names
	// the server.
	Servers []string
	// ServerName is the name in the servers' certificates, "" for the address that is used.
	ServerName string
	// Kubeconfig is a file with credentials; "" uses Credentials.
	Kubeconfig string
	// Credentials is a directory with the files token and ca.crt, "" for the one that Kubernetes mounts into a pod. A
	// token that is replaced there is read again.
	Credentials string
	// State is a directory of this node only, for what has to outlive the agent: learned addresses, pinned keys and
	// the last snapshot.
	State string
	// Held is closed when no other agent of this node saves snapshots there; nil means from the start.
	Held <-chan struct{}
	// ServiceCIDRs are the service ranges of a cluster whose API server has no ServiceCIDR objects (before 1.33).
	ServiceCIDRs []netip.Prefix
	// NodeCIDRs are the ranges in which other nodes' addresses must lie: see pins.Rules.
	NodeCIDRs []netip.Prefix
	// SecretsOf returns the Secrets that a snapshot refers to; those are watched, and no others. It is nil when this
	// agent serves no Ingress: then neither Ingresses nor IngressClasses are read.
	SecretsOf func(*kube.Objects) []kube.Ref
	// Announce is set when addresses of load balancers are announced from this node: then AddressPools and what says
	// how they are announced are read.
	Announce bool
	Logger   *slog.Logger

	refusedPause, policiesWait, policiesRest time.Duration // 0 for the constants of these names
}

const (
	// quietTime is how long no change must arrive before a snapshot is made. burstTime is how long the snapshot is
	// delayed at most.
	quietTime = 2 * time.Millisecond
	burstTime = 20 * time.Millisecond
	// saysAfter is when an incomplete start is logged first, saysEvery how often after that.
	saysAfter = 5 * time.Second
	// savedAfter is how long a start waits for objects newer than the saved ones while a server answers.
	savedAfter = 3 * time.Second
	saysEvery  = 30 * time.Second
)

// Cluster is one node's view of a cluster. Make it with New.
type Cluster struct {
	Options
	log     *slog.Logger
	rest    *rest.RESTClient
	servers *servers.Servers
	close   func()
	link    *servers.Link
	wake    chan struct{} // capacity 1: something has changed
	urgent  chan struct{} // capacity 1: see Urgent

	stores  map[*kube.Kind]holder
	sources []*source

	secrets   secrets
	policies  policies
	pins      *pins.Pins
	own       own
	publisher *tell.Publisher
	reporter  *tell.Reporter
	saver     *saved.Writer
	learned   roll.List[*discoveryv1.EndpointSlice] // those of the last learn
	savedAt   time.Time                             // when the saved objects were the API server's; zero for none

	mu sync.Mutex
	// mu guards the rest.
	delivered bool
	waiting   []string
}

// New returns a Cluster that does not talk to a server before Run. It fails when the options cannot be used.
func New(o Options) (*Cluster, error) {
	c := &Cluster{Options: o, log: cmp.Or(o.Logger, slog.Default()), wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1)}
	to, err := connect.To(o.connection())
	if err != nil {
		return nil, err
	}
	if c.pins, err = pins.Open(filepath.Join(o.State, "node-keys.json"), pins.Rules{Self: o.Node, NodeCIDRs: o.NodeCIDRs}); err != nil {
		return nil, err
	}
	c.rest, c.servers, c.close = to.Rest, to.Servers, to.Close
	c.link = to.Link(c.log)
	c.publisher = tell.NewPublisher(o.Node, c.rest, c.link, c.log)
	c.reporter = tell.NewReporter("tapestry.dev/agent", o.Node, c.rest, c.link, c.log)
	c.own.name = o.Node
	c.secrets, c.policies = newSecrets(c), newPolicies(c.touch, cmp.Or(o.policiesWait, policiesWait), cmp.Or(o.policiesRest, policiesRest))
	c.makeSources()
	c.openSaved(to.Cluster)
	return c, nil
}

func (o *Options) connection() connect.Options {
	return connect.Options{Servers: o.Servers, ServerName: o.ServerName, Kubeconfig: o.Kubeconfig, Credentials: o.Credentials, State: o.State}
}

// Run calls deliver with the objects of the cluster, and with the problems of this node's view of it, once everything
// has been read and after every change. What an agent of this node saved is delivered before that when no server can be
// reached, or when not everything has been read after savedAfter. Run blocks until ctx is done, and calls deliver from
// its own goroutine. Changes gather while deliver works, so a slow receiver gets fewer snapshots, and always the
// latest.
func (c *Cluster) Run(ctx context.Context, deliver func(kube.Objects, []kube.Problem)) error {
	defer c.close()
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { c.link.Run(ctx) })
	running.Go(func() { c.publisher.Run(ctx) })
	running.Go(func() { c.reporter.Run(ctx) })
	running.Go(func() { c.save(ctx) })
	objs, problems, old := c.saved()
	for _, s := range c.sources {
		running.Go(func() { s.run(ctx) })
	}
	var missed <-chan struct{}
	var late <-chan time.Time
	if old {
		t := time.NewTimer(savedAfter)
		defer t.Stop()
		missed, late = c.link.Missed(), t.C
	}
	begin := func() { // with what was saved
		missed, late = nil, nil
		if !c.isDelivered() {
			c.log.Info("starting with the cluster's objects as they were saved on this node, until the API server's are read", "age", age(c.savedAt).Round(time.Second))
			deliver(objs, problems)
		}
	}
	c.secrets.running = &running
	say := time.NewTimer(saysAfter)
	defer say.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-missed:
			begin()
		case <-late:
			begin()
		case <-say.C:
			if waiting := c.State().Waiting; len(waiting) > 0 {
				c.log.Warn(waitsFor(old), "waiting", strings.Join(waiting, "; "))
				say.Reset(saysEvery)
			}
		case <-c.wake:
			if !c.settle(ctx) {
				return nil
			}
			if objs, problems, ready := c.snapshot(ctx); ready {
				deliver(objs, problems)
			}
		}
	}
}

// save saves snapshots once the node is this agent's.
func (c *Cluster) save(ctx context.Context) {
	if c.Held != nil {
		select {
		case <-c.Held:
		case <-ctx.Done():
			return
		}
	}
	c.saver.Run(ctx)
}

// settle waits until a burst of changes has ended. It returns false when ctx is done.
func (c *Cluster) settle(ctx context.Context) bool {
	end := time.NewTimer(burstTime)
	defer end.Stop()
	for {
		quiet := time.NewTimer(quietTime)
		select {
		case <-ctx.Done():
			quiet.Stop()
			return false
		case <-end.C:
			quiet.Stop()
			return true
		case <-quiet.C:
			return true
		case <-c.wake:
			quiet.Stop()
		}
	}
}

func (c *Cluster) touch() {
	select {
	case c.wake <- struct{}{}:
	default: // the receiver will look anyway
	}
}

// snapshot returns the objects and the problems, or false when some kind has not been read yet.
func (c *Cluster) snapshot(ctx context.Context) (kube.Objects, []kube.Problem, bool) {
	var objs kube.Objects
	var missing, unread []string // unread are those that policies need
	for _, k := range kube.Kinds() {
		switch s := c.stores[k]; {
		case s == nil || s.put(&objs):
		case c.later(k) != nil:
			unread = append(unread, c.later(k).name)
		default:
			missing = append(missing, k.Plural)
		}
	}
	if len(missing) == 0 {
		missing = c.policies.admit(&objs, unread, c.isDelivered())
	}
	if len(missing) == 0 && c.SecretsOf != nil {
		missing = c.secrets.put(ctx, &objs, c.SecretsOf(&objs))
	}
	c.mu.Lock()
	c.waiting = missing
	ready := len(missing) == 0
	c.delivered = c.delivered || ready
	c.mu.Unlock()
	if !ready {
		return kube.Objects{}, nil, false
	}
	problems := c.complete(&objs, false)
	c.publisher.See(storeOf[*corev1.Node](c).get("", c.Node))
	return objs, problems, true
}

// complete makes a snapshot of the objects in the stores, and returns the problems. old is set for saved objects, from
// which nothing is learned. Others are saved.
func (c *Cluster) complete(objs *kube.Objects, old bool) []kube.Problem {
	raw := *objs
	if len(objs.ServiceCIDRs) == 0 {
		objs.ServiceCIDRs = c.configuredRanges()
	}
	if !old {
		c.learn(objs.EndpointSlices)
	}
	ranges := serviceRanges(objs.ServiceCIDRs)
	problems := c.problems(objs, ranges)
	objs.Nodes = c.own.in(objs.Nodes, &problems) // first: its own claims win in Judge
	if !old {
		raw.Nodes = objs.Nodes
		c.saver.Want(&raw)
	}
	objs.Nodes = c.pins.Judge(pins.Question{
		Nodes: objs.Nodes, Guarded: len(objs.PolicyBindings) > 0, Services: ranges, Servers: c.servers.Addrs(), Old: old,
	}, &problems)
	kube.SortProblems(problems)
	return problems
}

// waitsFor says what an agent does that has not read everything yet.
func waitsFor(old bool) string {
	if old {
		return "this node goes on with the cluster's objects as they were saved: the API server's are not complete"
	}
	return "nothing is served yet: the cluster's state is not complete"
}

func (c *Cluster) isDelivered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.delivered
}

// configuredRanges returns the configured service ranges as a ServiceCIDR, for an API server that has none.
func (c *Cluster) configuredRanges() []*networkingv1.ServiceCIDR {
	if len(c.ServiceCIDRs) == 0 {
		return nil
	}
	obj := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "configured"}}
	for _, p := range c.ServiceCIDRs {
		obj.Spec.CIDRs = append(obj.Spec.CIDRs, p.String())
	}
	return []*networkingv1.ServiceCIDR{obj}
}

// ofServers reports whether a slice belongs to the Service default/kubernetes.
func ofServers(s *discoveryv1.EndpointSlice) bool {
	return s.Namespace == metav1.NamespaceDefault && s.Labels[discoveryv1.LabelServiceName] == "kubernetes"
}

// learn remembers the addresses of the API servers, as the EndpointSlices of the Service default/kubernetes name
// them.
func (c *Cluster) learn(list roll.List[*discoveryv1.EndpointSlice]) {
	before := c.learned
	c.learned = list
	if changed, ok := roll.Replaced(before, list); ok && !slices.ContainsFunc(changed, func(i int) bool { return ofServers(before.At(i)) || ofServers(list.At(i)) }) {
		return
	}
	var addrs []netip.AddrPort
	first, _ := list.Search(func(s *discoveryv1.EndpointSlice) int {
		return nameOf(s).compare(objectName{metav1.NamespaceDefault, ""})
	})
	for i := first; i < list.Len(); i++ {
		s := list.At(i)
		if s.Namespace != metav1.NamespaceDefault {
			break
		}
		if !ofServers(s) {
			continue
		}
		for _, p := range s.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != "https" {
				continue
			}
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				if len(e.Addresses) == 0 || e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				if ip, err := netip.ParseAddr(e.Addresses[0]); err == nil && !ip.IsLoopback() {
					addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), uint16(*p.Port)))
				}
			}
		}
	}
	if err := c.servers.Learn(addrs); err != nil {
		c.learned = roll.List[*discoveryv1.EndpointSlice]{} // the next snapshot tries again
		c.log.Warn("learned addresses of API servers are not kept: a start while the configured server is away has to wait for it", "err", err)
	}
}

// problems returns what is wrong with this node's view of the cluster.
func (c *Cluster) problems(objs *kube.Objects, ranges []netip.Prefix) []kube.Problem {
	var list []kube.Problem
	add := func(s kube.Severity, ref kube.Ref, format string, args ...any) {
		list = append(list, kube.Problem{Severity: s, Object: ref, Message: fmt.Sprintf(format, args...)})
	}
	own := kube.Ref{Kind: "Node", Name: c.Node}
	for _, s := range c.sources {
		if err := s.refused(); s.without(err) && s.kind != guardKind { // unreadable counts as no guard
			add(kube.Warning, own, "the API server does not let the agent read %s, so that it goes on without them: grant it get, list and watch (%v)", s.name, err)
		}
	}
	if text := c.policies.problem(); text != "" {
		add(kube.Error, own, "%s", text)
	}
	if len(objs.ServiceCIDRs) == 0 && c.lacks(kube.KindFor[*networkingv1.ServiceCIDR]()) {
		add(kube.Warning, own, "the API server does not tell the service ranges, so the default ones are used: name the cluster's with --service-cidr")
	}
	if err := c.saver.Err(); err != nil {
		add(kube.Warning, own, "the cluster's objects cannot be kept for a start without an API server: %v: make room or give the agent rights there", err)
	}
	for _, server := range c.servers.Within(ranges) {
		add(kube.Error, own, "the API server's address %s belongs to a Service, which this agent itself has to serve: after a restart it could not reach the API server there. Configure the address of a machine (--api-server)", server)
	}
	return list
}

// serviceRanges parses the ranges of ServiceCIDRs.
func serviceRanges(list []*networkingv1.ServiceCIDR) []netip.Prefix {
	var ranges []netip.Prefix
	for _, obj := range list {
		for _, text := range obj.Spec.CIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				ranges = append(ranges, p)
			}
		}
	}
	return ranges
}

// lacks reports whether the API server does not know a kind, or does not let the agent read it.
func (c *Cluster) lacks(k *kube.Kind) bool {
	for _, s := range c.sources {
		if _, err := s.state(); s.kind == k && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err)) {
			return true
		}
	}
	return false
}

// Publish writes the state of this node on its Node object: annotations, and the condition NetworkUnavailable. It
// does not block. What cannot be written now is written later, and only changes are written. What follows from saved
// objects is not written at all: it may be wrong by now.
func (c *Cluster) Publish(s kube.NodeStatus) {
	if c.isDelivered() {
		c.publisher.Want(s)
	}
}

// Report writes problems as Events on the objects they are about. shared holds the problems that every agent finds:
// only the first node's agent reports them. own holds those that only this agent reports. Problems of saved objects
// are not reported.
func (c *Cluster) Report(objs *kube.Objects, shared, own []kube.Problem) {
	if c.isDelivered() {
		c.reporter.Want(objs, shared, own)
	}
}

// Evict has the pod with this UID deleted, as evict.Evictor does. Nothing is evicted for what saved objects say.
func (c *Cluster) Evict(ctx context.Context, pod kube.Ref, uid string) error {
	if !c.isDelivered() {
		return fmt.Errorf("evict %s: the API server's objects have not been read yet", pod)
	}
	return (&evict.Evictor{Rest: c.rest, Link: c.link}).Evict(ctx, pod, uid)
}

// PodIPs returns the addresses that a Pod of this node asks for with kube.PodIPsAnnotation, or "" when it asks for
// none. It asks the API server, for as long as ctx allows, when the Pod is not known yet. A Pod that the server does
// not know either asks for none: it is a static pod that the kubelet has not announced yet.
func (c *Cluster) PodIPs(ctx context.Context, namespace, name string) (string, error) {
	p := storeOf[*corev1.Pod](c).get(namespace, name)
	_, unreachable := c.link.State()
	// A saved Pod may be gone, and another of its name be there. Without a server it is the best there is.
	if p != nil && (c.isDelivered() || unreachable != nil) {
		return p.Annotations[kube.PodIPsAnnotation], nil
	}
	p = &corev1.Pod{}
	err := c.rest.Get().AbsPath("/api/v1/namespaces", namespace, "pods", name).Do(ctx).Into(p)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for the annotation %s of pod %s/%s: %w", kube.PodIPsAnnotation, namespace, name, err)
	}
	return p.Annotations[kube.PodIPsAnnotation], nil
}

// State returns the state of the connection to the API servers.
func (c *Cluster) State() kube.SourceState {
	h := kube.SourceState{Server: c.servers.Current()}
	c.mu.Lock()
	h.Synced, h.Waiting = c.delivered, slices.Clone(c.waiting)
	c.mu.Unlock()
	since, err := c.link.State()
	h.Err, h.Answers = err, since.IsZero()
	if !h.Synced {
		h.Saved = c.savedAt
		if len(h.Waiting) == 0 {
			h.Waiting = []string{"an API server"}
		}
	}
	for i, name := range h.Waiting {
		for _, s := range c.sources {
			if _, answer := s.state(); s.name == name && answer != nil {
				h.Waiting[i] = name + ": " + answer.Error()
			}
		}
	}
	for _, s := range c.sources {
		broken, answer := s.asked()
		if broken.IsZero() || s.optional && answer != nil || s.without(answer) {
			continue
		}
		if since.IsZero() || broken.Before(since) {
			since = broken
		}
		h.Err = cmp.Or(h.Err, answer)
	}
	if !h.Saved.IsZero() && (since.IsZero() || h.Saved.Before(since)) {
		since = h.Saved
	}
	if !since.IsZero() {
		h.Age = age(since)
	}
	return h
}
