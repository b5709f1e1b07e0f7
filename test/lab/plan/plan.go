package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/manifests"
	"tapestry.dev/tapestry/test/lab/kubelet"
	"tapestry.dev/tapestry/test/lab/plan/container"
)

// Options are what a Planner must know about the lab.
type Options struct {
	// Server is the command of a container that has no command of its own.
	Server []string
	// Env is what every container's environment starts with.
	Env []string
	// Upstreams are the resolvers outside of the cluster.
	Upstreams []netip.Addr
}

// Planner makes plans from the objects that were written. It remembers the addresses and ports that it gave out, so
// that an edit moves as little as possible. It is not safe for concurrent use.
type Planner struct {
	opts  Options
	state state
}

// state is what a Planner remembers. Every Plan makes a new state from the last one.
type state struct {
	underlay Underlay
	nodes    map[string]Node
	index    map[string]int // of nodes, from 1
	pods     map[string]*podState
	services map[string]*corev1.Service
	lastPod  map[netip.Prefix]netip.Addr // where the search for the next pod address starts
	runs     map[string]int              // how many incarnations of a pod there were, deleted pods included
	created  map[kube.Ref]metav1.Time
	turn     int // of the scheduler
	// leaving has the pods that were told to stop and are not gone yet, by UID.
	leaving map[string]*corev1.Pod
}

type podState struct {
	pod  *corev1.Pod // complete
	spec [sha256.Size]byte
	node string
	run  *kubelet.Pod
}

// Node is a node that the lab is to make.
type Node struct {
	Name string
	// Addrs are its underlay addresses, primary first. PodCIDRs are its pod ranges. Each has at most one per family.
	Addrs    []netip.Addr
	PodCIDRs []netip.Prefix
	// External is set for a node that somebody else runs. It gets a namespace but no agent.
	External bool
}

// Equal reports whether a running node can stay unchanged.
func (n Node) Equal(m Node) bool {
	return n.Name == m.Name && n.External == m.External && slices.Equal(n.Addrs, m.Addrs) &&
		slices.Equal(n.PodCIDRs, m.PodCIDRs)
}

// Underlay is the network between the nodes.
type Underlay struct {
	// Prefixes are the subnets, at most one per family.
	Prefixes []netip.Prefix
	// Outside are the addresses of the client namespace, one per prefix.
	Outside []netip.Addr
}

// Cluster is a plan.
type Cluster struct {
	Underlay     Underlay
	Nodes        []Node
	Pods         []*kubelet.Pod
	ServiceCIDRs []netip.Prefix
	// Warnings are sentences about what looks wrong in the objects.
	Warnings []string

	objects kube.Objects // complete, except for what only running things know
	current map[string]*corev1.Pod
	leaving map[string]*corev1.Pod
}

// New returns a Planner that has given out nothing yet.
func New(opts Options) *Planner { return &Planner{opts: opts} }

// Forget tells the Planner that nothing is left of a pod's incarnation.
func (p *Planner) Forget(uid string) { delete(p.state.leaving, uid) }

// Plan makes a plan for the objects that were written. When something is wrong with them, the error lists all problems,
// and the Planner remembers nothing of this call.
func (p *Planner) Plan(written kube.Objects) (*Cluster, error) {
	w := &work{
		opts: p.opts, old: &p.state, objects: deepCopy(written),
		next: state{
			underlay: p.state.underlay,
			nodes:    map[string]Node{}, index: map[string]int{}, pods: map[string]*podState{},
			services: map[string]*corev1.Service{}, runs: map[string]int{}, created: map[kube.Ref]metav1.Time{},
			lastPod: map[netip.Prefix]netip.Addr{}, turn: p.state.turn,
			leaving: map[string]*corev1.Pod{},
		},
	}
	maps.Copy(w.next.lastPod, p.state.lastPod)
	maps.Copy(w.next.runs, p.state.runs)
	maps.Copy(w.next.leaving, p.state.leaving)
	for _, step := range []func(){w.defaults, w.nodes, w.serviceRanges, w.check, w.services, w.loadBalancers, w.schedule, w.podAddrs, w.pods} {
		if step(); len(w.errs) > 0 {
			return nil, errors.Join(w.errs...)
		}
	}
	c := w.cluster()
	// Fields that were left out are filled in now, and values given out may conflict with values in the files.
	var err error
	if c.Warnings, err = judge(c.Snapshot(nil)); err != nil {
		return nil, err
	}
	c.Warnings = append(c.Warnings, w.warnings...)
	p.state = w.next
	return c, nil
}

// check judges the objects once the nodes have their ranges, which pods may refer to. The later steps rely on it.
func (w *work) check() {
	if _, err := judge(w.objects); err != nil {
		w.errs = append(w.errs, err)
	}
}

// judge returns what is wrong with objects, before anything is made from them.
func judge(objects kube.Objects) (warnings []string, err error) {
	var errs []error
	for _, p := range manifests.Validate(objects) {
		if p.Severity == kube.Error {
			errs = append(errs, p)
		} else {
			warnings = append(warnings, p.String())
		}
	}
	return warnings, errors.Join(errs...)
}

// work is one call of Plan.
type work struct {
	opts    Options
	old     *state
	next    state
	objects kube.Objects // being completed
	errs    []error
	// warnings are about what cannot be given, while the rest of the cluster is as it should be.
	warnings []string

	nodeList []Node
	ranges   []netip.Prefix // of Services
	dns      []netip.Addr   // of the cluster DNS
	podNode  map[string]string
	podIPs   map[string][]netip.Addr
}

// fail records a problem with an object.
func (w *work) fail(obj metav1.Object, field, format string, args ...any) {
	ref := kube.RefOf(obj)
	w.errs = append(w.errs, kube.Problem{
		Severity: kube.Error, Object: ref, Origin: w.objects.Origin[ref], Field: field,
		Message: fmt.Sprintf(format, args...),
	})
}

// deepCopy returns a copy of objects that may be changed.
func deepCopy(in kube.Objects) kube.Objects {
	out := in.Map(func(obj kube.Object) kube.Object { return obj.DeepCopyObject().(kube.Object) })
	out.Origin = maps.Clone(in.Origin)
	return out
}

// defaults adds the objects that every cluster has, and fills in what an API server fills in.
func (w *work) defaults() {
	o := &w.objects
	w.addDNSService()
	seen := map[string]bool{}
	for _, ns := range o.Namespaces {
		seen[ns.Name] = true
	}
	for obj := range w.objects.All() {
		if !kube.KindOf(obj).ClusterScoped && obj.GetNamespace() == "" {
			obj.SetNamespace(metav1.NamespaceDefault)
		}
	}
	needed := map[string]bool{metav1.NamespaceDefault: true, metav1.NamespaceSystem: true}
	for obj := range w.objects.All() {
		if ns := obj.GetNamespace(); ns != "" {
			needed[ns] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(needed)) {
		if !seen[name] {
			o.Namespaces = append(o.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	}
	for _, ns := range o.Namespaces {
		setLabel(ns, corev1.LabelMetadataName, ns.Name)
	}
	for _, s := range o.Services {
		defaultService(s)
	}
	for _, p := range o.Pods {
		defaultPod(p)
	}
	for _, ing := range o.Ingresses {
		defaultIngress(ing)
	}
	o.Sort()
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	for obj := range o.All() {
		ref := kube.RefOf(obj)
		at, ok := w.old.created[ref]
		if !ok {
			at = now
		}
		w.next.created[ref] = at
		obj.SetCreationTimestamp(at)
		if obj.GetUID() == "" {
			obj.SetUID(uid(ref, 0))
		}
	}
}

func setLabel(obj metav1.Object, key, value string) {
	labels := maps.Clone(obj.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	if _, ok := labels[key]; !ok {
		labels[key] = value
	}
	obj.SetLabels(labels)
}

// uid derives a UID, so that an object keeps it as long as the lab lives. The UID looks like a version 8 UUID (RFC
// 9562, section 5.8).
func uid(ref kube.Ref, run int) types.UID {
	h := sha256.Sum256([]byte(ref.String() + "#" + strconv.Itoa(run)))
	h[6] = h[6]&0x0f | 0x80
	h[8] = h[8]&0x3f | 0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16]))
}

// schedule gives every pod a node: the node it names, else the node whose range has the address it asks for, else the
// node where it was, else the next in turn.
func (w *work) schedule() {
	w.podNode = map[string]string{}
	for _, pod := range w.objects.Pods {
		key := podKey(pod)
		fits := w.nodesFor(pod)
		name := pod.Spec.NodeName
		switch {
		case name != "":
			if _, ok := w.next.nodes[name]; !ok {
				w.fail(pod, "spec.nodeName", "there is no Node %q: name one of the file's Nodes, or leave nodeName out", name)
				continue
			}
		case len(fits) == 0:
			w.fail(pod, "spec", "no Node fits: the file needs a Node with the labels of its nodeSelector, and which holds its pod-ips")
			continue
		default:
			if old, ok := w.old.pods[key]; ok && slices.Contains(fits, old.node) {
				name = old.node
				break
			}
			name = fits[w.next.turn%len(fits)]
			w.next.turn++
		}
		if w.next.nodes[name].External {
			w.fail(pod, "spec.nodeName", "Node %q is run by somebody else (label %s): the lab cannot start pods there", name, kube.ExternalLabel)
			continue
		}
		pod.Spec.NodeName = name
		w.podNode[key] = name
	}
}

// nodesFor lists, by name, the nodes that a pod without nodeName may run on.
func (w *work) nodesFor(pod *corev1.Pod) []string {
	var names []string
	asked, _ := kubePodIPs(pod)
	for _, obj := range w.objects.Nodes {
		node := w.next.nodes[obj.Name]
		if node.External {
			continue
		}
		ok := true
		for k, v := range pod.Spec.NodeSelector {
			ok = ok && obj.Labels[k] == v
		}
		for _, a := range asked {
			ok = ok && addressing.Contains(node.PodCIDRs, a)
		}
		if ok {
			names = append(names, obj.Name)
		}
	}
	return names
}

// pods decides which pods stay, which are new and which have to end, and what is to run.
func (w *work) pods() {
	for _, pod := range w.objects.Pods {
		key := podKey(pod)
		node := w.next.nodes[pod.Spec.NodeName]
		completePodStatus(pod, node, w.podIPs[key])
		fingerprint := w.fingerprint(pod, w.kubeletPod(pod, node).Problem)
		if len(w.errs) > 0 {
			continue
		}
		old, kept := w.old.pods[key]
		run := w.next.runs[key]
		if !kept || old.spec != fingerprint {
			run++
			w.next.runs[key] = run
		}
		pod.UID = uid(kube.RefOf(pod), run)
		ps := &podState{pod: pod, spec: fingerprint, node: node.Name}
		ps.run = w.kubeletPod(pod, node)
		w.next.pods[key] = ps
	}
	for key, old := range w.old.pods {
		if now, ok := w.next.pods[key]; !ok || now.pod.UID != old.pod.UID {
			w.next.leaving[string(old.pod.UID)] = old.pod
		}
	}
}

// fingerprint returns a value that changes when a running pod has to be replaced. Labels and most annotations may
// change without that. A pod that could not be started is replaced when the reason changes.
func (w *work) fingerprint(pod *corev1.Pod, problem string) [sha256.Size]byte {
	b, err := json.Marshal(struct {
		Spec            corev1.PodSpec
		Addrs           []netip.Addr
		Node            Node
		Period, Problem string
	}{pod.Spec, w.podIPs[podKey(pod)], w.next.nodes[pod.Spec.NodeName], pod.Annotations[container.ProbePeriodAnnotation], problem})
	if err != nil {
		w.fail(pod, "spec", "cannot be encoded: %v", err)
	}
	return sha256.Sum256(b)
}

func (w *work) cluster() *Cluster {
	c := &Cluster{
		Underlay: w.next.underlay, Nodes: w.nodeList, ServiceCIDRs: w.ranges, objects: w.objects,
		current: map[string]*corev1.Pod{}, leaving: maps.Clone(w.next.leaving),
	}
	for _, ps := range w.next.pods {
		c.Pods = append(c.Pods, ps.run)
		c.current[podKey(ps.pod)] = ps.pod
	}
	slices.SortFunc(c.Pods, func(a, b *kubelet.Pod) int { return cmp.Compare(a.Key(), b.Key()) })
	return c
}

func podKey(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }
