package policies

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/policyapi"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
	"tapestry.dev/tapestry/roll"
)

// Around is what a Config follows from besides the objects.
type Around struct {
	Node string
	// Net has the nodes. It is the same pointer while they are the same.
	Net *netstack.Config
	// DNS are the addresses of cluster DNS.
	DNS []netip.Addr
}

// Stage makes the Configs of a node from successive snapshots. What has not changed is the same pointer in the next
// Config. The zero value is ready.
type Stage struct {
	policies   known[*networkingv1.NetworkPolicy, *policy.Policy]
	limits     limits[*networkingv1.NetworkPolicy, *policy.Policy]
	cluster    known[*policyapi.ClusterNetworkPolicy, *tiers.Policy]
	tiers      limits[*policyapi.ClusterNetworkPolicy, *tiers.Policy]
	namespaces known[*corev1.Namespace, *policy.Namespace]
	pods       known[*corev1.Pod, *policy.Pod]
	split      struct {
		of          []*corev1.Pod
		dns         []netip.Addr
		own, others []*policy.Pod
		elsewhere   roll.List[*policy.Pod]
	}
	read   roll.List[*kube.OtherPod]
	others roll.List[*policy.Pod]
	net    *netstack.Config
	byName []*corev1.Node
	nodes  []policy.Node
}

// Of returns the Config for the node of a. It is the zero Config where there are no policies. Lists of objs are sorted.
func (s *Stage) Of(objs *kube.Objects, a Around, say *kube.Report) policy.Config {
	if len(objs.NetworkPolicies)+len(objs.ClusterNetworkPolicies) == 0 {
		*s = Stage{}
		return policy.Config{}
	}
	s.limits.bound, s.tiers.bound = ofNamespaces, ofCluster
	c := policy.Config{
		Policies: s.limits.within(objs.NetworkPolicies, s.policies.each(objs.NetworkPolicies, say, parse), say),
		Cluster:  s.tiers.within(objs.ClusterNetworkPolicies, s.cluster.each(objs.ClusterNetworkPolicies, say, parseCluster), say),
	}
	c.Namespaces = s.namespaces.each(objs.Namespaces, say, func(ns *corev1.Namespace, _ *kube.Report) *policy.Namespace {
		return &policy.Namespace{Name: ns.Name, Labels: law.LabelsOf(ns.Labels)}
	})
	c.Own, c.Others = s.divide(objs, a, say)
	labelled := objs.Nodes
	if len(c.Cluster) == 0 { // nothing else names nodes
		labelled = nil
	}
	if s.net != a.Net || !kube.Same(s.byName, labelled) {
		s.net, s.byName = a.Net, labelled
		if nodes := nodesOf(a.Net, labelled); !reflect.DeepEqual(nodes, s.nodes) {
			s.nodes = nodes
		}
	}
	c.Nodes = s.nodes
	return c
}

// divide returns the pods of this node, and those of others.
func (s *Stage) divide(objs *kube.Objects, a Around, say *kube.Report) (own []*policy.Pod, others roll.List[*policy.Pod]) {
	d := &s.split
	s.pods.each(objs.Pods, say, func(obj *corev1.Pod, say *kube.Report) *policy.Pod {
		if obj.Spec.NodeName == a.Node {
			tellPod(obj, say)
		}
		return podOf(obj)
	})
	if !kube.Same(d.of, objs.Pods) || d.own == nil || !slices.Equal(d.dns, a.DNS) {
		var own, others []*policy.Pod
		for _, obj := range objs.Pods {
			switch p := s.pods.of[obj].result; {
			case p == nil:
			case obj.Spec.NodeName == a.Node && a.Node != "":
				own = append(own, p)
			default:
				others = append(others, p)
			}
		}
		own = s.withDNS(own, a.DNS)
		if !slices.Equal(own, d.own) {
			d.own = own
		}
		if !slices.Equal(others, d.others) {
			d.others, d.elsewhere = others, roll.From(others)
		}
		d.of, d.dns = objs.Pods, a.DNS
	}
	if len(d.others) > 0 {
		return d.own, d.elsewhere
	}
	s.others = s.follow(objs.OtherPods)
	return d.own, s.others
}

// Cluster DNS is answered by each node, and judged as a pod: that by which CoreDNS is named in policies.
const (
	dnsName     = "(cluster DNS)" // no object has such a name
	dnsLabel    = "k8s-app"
	dnsValue    = "kube-dns"
	dnsPort     = 53
	dnsPortUDP  = "dns"
	dnsPortTCP  = "dns-tcp"
	dnsInSystem = metav1.NamespaceSystem
)

// withDNS returns a sorted list of pods with cluster DNS among them.
func (s *Stage) withDNS(own []*policy.Pod, addrs []netip.Addr) []*policy.Pod {
	p := &policy.Pod{
		Namespace: dnsInSystem, Name: dnsName, Labels: law.Labels{{Key: dnsLabel, Value: dnsValue}}, Addrs: addrs,
		Ports: []law.NamedPort{{Name: dnsPortUDP, Proto: packet.UDP, Port: dnsPort}, {Name: dnsPortTCP, Proto: packet.TCP, Port: dnsPort}},
	}
	for _, before := range s.split.own {
		if before.Name == dnsName && slices.Equal(before.Addrs, addrs) {
			p = before
		}
	}
	at, _ := slices.BinarySearchFunc(own, p, func(a, b *policy.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return slices.Insert(own, at, p)
}

// follow returns the pods of other nodes. One that changes costs itself.
func (s *Stage) follow(now roll.List[*kube.OtherPod]) roll.List[*policy.Pod] {
	before := s.read
	s.read = now
	if changed, ok := roll.Replaced(before, now); ok {
		var edits []roll.Edit[*policy.Pod]
		for _, i := range changed {
			edits = append(edits, roll.Edit[*policy.Pod]{At: i, To: again(s.others.At(i), otherOf(now.At(i)))})
		}
		return s.others.With(edits...)
	}
	out := make([]*policy.Pod, 0, now.Len())
	i := 0
	for _, obj := range now.All() {
		for i < before.Len() && compare(before.At(i), obj) < 0 {
			i++
		}
		switch {
		case i >= before.Len() || compare(before.At(i), obj) > 0:
			out = append(out, otherOf(obj))
		case before.At(i) == obj:
			out = append(out, s.others.At(i))
		default:
			out = append(out, again(s.others.At(i), otherOf(obj)))
		}
	}
	return roll.From(out)
}

// again returns before if now says the same.
func again(before, now *policy.Pod) *policy.Pod {
	if reflect.DeepEqual(before, now) {
		return before
	}
	return now
}

func compare(a, b *kube.OtherPod) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// nodesOf returns this node and its peers as the other ends of flows, with the labels of those of a list.
func nodesOf(c *netstack.Config, labelled []*corev1.Node) []policy.Node {
	labels := make(map[string]law.Labels, len(labelled))
	for _, n := range labelled {
		labels[n.Name] = law.LabelsOf(n.Labels)
	}
	one := func(name string, addrs []netip.Addr, ranges []netip.Prefix, agent bool) policy.Node {
		n := policy.Node{Name: name, Pods: ranges, Addrs: addrs, Labels: labels[name]}
		for _, r := range ranges {
			if n.Host = append(n.Host, addressing.Host(r)); agent {
				n.Agent = append(n.Agent, addressing.Stack(r))
			}
		}
		return n
	}
	list := []policy.Node{one(c.Node, c.NodeAddrs, c.PodCIDRs, true)}
	for i := range c.Peers {
		p := &c.Peers[i]
		list = append(list, one(p.Name, p.NodeAddrs, p.PodCIDRs, p.Encap))
	}
	return list
}

// known remembers what objects come to, and what was told of them. Nil results are left out of lists.
type known[K comparable, R comparable] struct {
	inputs []K
	of     map[K]found[R]
	list   []R
}

type found[R any] struct {
	result   R
	problems []kube.Problem
}

// each returns the results of a list: the same slice as before if none has changed.
func (k *known[K, R]) each(list []K, say *kube.Report, work func(K, *kube.Report) R) []R {
	if k.of != nil && kube.Same(k.inputs, list) {
		for _, obj := range list {
			say.Problems = append(say.Problems, k.of[obj].problems...)
		}
		return k.list
	}
	next, results := make(map[K]found[R], len(list)), make([]R, 0, len(list))
	byName := map[string]R{}
	for obj, f := range k.of {
		byName[nameOf(obj)] = f.result
	}
	var none R
	for _, obj := range list {
		f, before := k.of[obj]
		if !before {
			var told kube.Report
			f = found[R]{work(obj, &told), few(told.Problems)}
			if old := byName[nameOf(obj)]; old != none && reflect.DeepEqual(old, f.result) {
				f.result = old // what has changed is nothing that policies look at
			}
		}
		next[obj] = f
		say.Problems = append(say.Problems, f.problems...)
		if f.result != none {
			results = append(results, f.result)
		}
	}
	k.inputs, k.of = list, next
	if !slices.Equal(results, k.list) {
		k.list = results
	}
	return k.list
}

// fewest is how many problems of one object are told one by one.
const fewest = 8

// few returns problems of one object, of which those beyond fewest are only counted, with the last one that is told.
func few(list []kube.Problem) []kube.Problem {
	if len(list) <= fewest {
		return list
	}
	kube.SortProblems(list)
	more := len(list) - fewest
	list = slices.Clone(list[:fewest])
	list[fewest-1].Message += fmt.Sprintf(" (and %d more of this object)", more)
	return list
}

func nameOf(obj any) string {
	m := obj.(metav1.Object)
	return m.GetNamespace() + "/" + m.GetName()
}
