// Package egress decides, from a snapshot of the cluster, which pods leave it from which EgressAddress, and which nodes
// can be the gateway of an address. It is a pure function of the objects; package netstack/exit says what happens with
// the result, and package announce which of the nodes is the gateway.
//
// It fails closed: pods of an object that cannot be used reach nothing outside, since whoever filters by address would
// take them for somebody else. Each agent knows the pods of its own node alone.
package egress

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pools/block"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/netstack/exit"
)

// Result is what follows for a node.
type Result struct {
	Pods exit.Pods
	// Links are the addresses that gateways announce.
	Links []announce.Link
}

// Address is an EgressAddress, as it can be used.
type Address struct {
	*v1alpha1.EgressAddress
	// Addrs are usable if Faults is empty; otherwise its pods reach nothing outside.
	Addrs []netip.Addr
	// Faults say why it cannot be used, as sentences.
	Faults []string
	// Nodes are those that can be the gateway, in the order of Nodes.
	Nodes []announce.Node

	pods labels.Selector
}

// Read reads all EgressAddresses, the oldest first, since that keeps an address of which there are several. services
// are the ranges of Services.
func Read(objs *kube.Objects, services []netip.Prefix, say *kube.Report) []*Address {
	sorted := slices.SortedFunc(slices.Values(objs.EgressAddresses), func(a, b *v1alpha1.EgressAddress) int {
		return cmp.Or(a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	r := reader{objs: objs, say: say, owners: map[netip.Addr]string{}, services: services, pool: block.Finder(objs.AddressPools)}
	list := make([]*Address, len(sorted))
	for i, obj := range sorted {
		list[i] = r.read(obj)
	}
	return list
}

type reader struct {
	objs     *kube.Objects
	say      *kube.Report
	owners   map[netip.Addr]string
	services []netip.Prefix
	pool     func(netip.Addr) string
}

func (r *reader) read(obj *v1alpha1.EgressAddress) *Address {
	a := &Address{EgressAddress: obj}
	fault := func(field, format string, args ...any) {
		var one kube.Report
		one.Errorf(kube.RefOf(obj), field, format, args...)
		a.Faults = append(a.Faults, field+": "+one.Problems[0].Message)
		r.say.Problems = append(r.say.Problems, one.Problems...)
	}
	families := map[bool]bool{}
	for i, text := range obj.Spec.Addresses {
		field := "spec.addresses[" + strconv.Itoa(i) + "]"
		addr, err := netip.ParseAddr(text)
		addr = addr.Unmap()
		switch {
		case err != nil || addr.Zone() != "":
			fault(field, "%q is not an address: expected one like 192.0.2.1", text)
			continue
		case addressing.Special(addr) != "":
			fault(field, "%s is %s: expected an address that hosts outside can answer", addr, addressing.Special(addr))
			continue
		case families[addr.Is4()]:
			fault(field, "%s is the second address of its family: expected one of IPv4 and one of IPv6 at most", addr)
			continue
		}
		if of := r.taken(addr); of != "" {
			fault(field, "%s is %s: take an address that nobody else has", addr, of)
			continue
		}
		if pool := r.pool(addr); pool != "" {
			r.say.Warnf(kube.RefOf(obj), field, "%s is in AddressPool %q, and no Service gets it: take it out of the pool", addr, pool)
		}
		families[addr.Is4()] = true
		r.owners[addr] = obj.Name
		a.Addrs = append(a.Addrs, addr)
	}
	if len(obj.Spec.Namespaces) == 0 {
		fault("spec.namespaces", "it names no namespace, so it is for no pod: name one")
	}
	a.pods = selector(obj.Spec.PodSelector, "spec.podSelector", fault)
	nodes := selector(obj.Spec.NodeSelector, "spec.nodeSelector", fault)
	for _, n := range r.objs.Nodes {
		stock := n.Annotations[kube.StockAnnotation] == "true" || n.Labels[kube.ExternalLabel] == "true"
		if !stock && nodes.Matches(labels.Set(n.Labels)) {
			a.Nodes = append(a.Nodes, announce.Node{Name: n.Name, Leaving: kube.Leaving(n)})
		}
	}
	if len(a.Nodes) == 0 {
		fault("spec.nodeSelector", "it selects no node that runs an agent, so its pods reach nothing outside: select one at least")
	}
	return a
}

// selector reads a selector; nil selects everything. One that cannot be understood is a fault. It selects everything,
// so that no pod leaves from another address than was meant.
func selector(s *metav1.LabelSelector, field string, fault func(field, format string, args ...any)) labels.Selector {
	if s == nil {
		return labels.Everything()
	}
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		fault(field, "it cannot be understood, so all pods of the namespaces are refused the outside: %v", err)
		return labels.Everything()
	}
	return sel
}

// taken says what an address is already, or "".
func (r *reader) taken(a netip.Addr) string {
	if of, known := r.owners[a]; known {
		return "an address of EgressAddress " + strconv.Quote(of)
	}
	if addressing.Contains(r.services, a) {
		return "in a range of Services"
	}
	for _, n := range r.objs.Nodes {
		for _, text := range kube.PodCIDRs(n) {
			if p, err := netip.ParsePrefix(text); err == nil && p.Contains(a) {
				return "in the range of the pods of node " + n.Name
			}
		}
		for _, at := range n.Status.Addresses {
			if own, err := netip.ParseAddr(at.Address); err == nil && own.Unmap() == a {
				return "an address of node " + n.Name
			}
		}
	}
	return ""
}

// Stage makes the Result of a node from successive snapshots. The zero value is ready.
type Stage struct {
	objs     kube.Objects // those that same compares: others would be kept alive by it
	services []netip.Prefix
	made     Result
	begun    bool
	problems []kube.Problem
}

// Of returns the Result for a node. Nothing of it changes, not even a pointer, as long as nothing else has.
func (s *Stage) Of(node string, objs *kube.Objects, services []netip.Prefix, say *kube.Report) Result {
	if !s.begun || !s.same(objs) || !kube.Same(s.services, services) {
		var found kube.Report
		made := resultOf(node, objs, Read(objs, services, &found), &found)
		if reflect.DeepEqual(made.Links, s.made.Links) { // as when another pod comes
			made.Links = s.made.Links
		}
		if slices.Equal(made.Pods.Addresses, s.made.Pods.Addresses) {
			made.Pods.Addresses = s.made.Pods.Addresses
		}
		*s = Stage{services: services, begun: true, made: made, objs: kube.Objects{
			EgressAddresses: objs.EgressAddresses, Nodes: objs.Nodes, Pods: objs.Pods, AddressPools: objs.AddressPools,
		}}
		s.problems = found.Problems
	}
	say.Problems = append(say.Problems, s.problems...)
	return s.made
}

func (s *Stage) same(objs *kube.Objects) bool {
	if !kube.Same(s.objs.EgressAddresses, objs.EgressAddresses) {
		return false
	}
	return len(objs.EgressAddresses) == 0 ||
		kube.Same(s.objs.Nodes, objs.Nodes) && kube.Same(s.objs.Pods, objs.Pods) && kube.Same(s.objs.AddressPools, objs.AddressPools)
}

func resultOf(node string, objs *kube.Objects, list []*Address, say *kube.Report) Result {
	if len(list) == 0 {
		return Result{}
	}
	r := Result{Pods: exit.Pods{Addrs: map[string][]netip.Addr{}, Free: map[string]bool{}}}
	used := map[*Address]bool{}
	for _, a := range list {
		r.Pods.Held = append(r.Pods.Held, a.Spec.Namespaces...)
	}
	slices.Sort(r.Pods.Held)
	r.Pods.Held = slices.Compact(r.Pods.Held)
	for _, pod := range objs.Pods {
		if pod.Spec.NodeName != node || node == "" {
			continue
		}
		if _, held := slices.BinarySearch(r.Pods.Held, pod.Namespace); !held {
			continue
		}
		name := pod.Namespace + "/" + pod.Name
		a := choose(pod, list, say)
		switch {
		case a == nil:
			r.Pods.Free[name] = true
		case len(a.Faults) > 0:
			r.Pods.Addrs[name] = nil
		default:
			r.Pods.Addrs[name] = a.Addrs
			used[a] = true
		}
	}
	for _, a := range list {
		if len(a.Faults) > 0 {
			continue
		}
		r.Pods.Addresses = append(r.Pods.Addresses, a.Addrs...)
		for _, addr := range a.Addrs {
			ranked := announce.Rank(addr, announce.Eligible(a.Nodes, []announce.Needs{{}}))
			r.Links = append(r.Links, announce.Link{
				Addr: addr, Egress: a.Name, Used: used[a], Interfaces: a.Spec.Interfaces, Ranked: ranked,
			})
		}
	}
	return r
}

// unclear stands for the EgressAddress of a pod of which it is not known whether one selects it.
var unclear = &Address{Faults: []string{"its pod has too many labels"}}

// choose returns the EgressAddress of a pod, or nil: the first that selects it.
func choose(pod *corev1.Pod, list []*Address, say *kube.Report) (found *Address) {
	for _, a := range list {
		switch {
		case !slices.Contains(a.Spec.Namespaces, pod.Namespace):
		case found == nil && !pod.Spec.HostNetwork && len(pod.Labels) > kube.MaxPodLabels && !a.pods.Empty():
			say.Errorf(kube.RefOf(pod), "metadata.labels", "it has more than %d labels, and EgressAddress %q selects by labels, so it reaches nothing outside: remove some of them", kube.MaxPodLabels, a.Name)
			return unclear
		case !a.pods.Matches(labels.Set(pod.Labels)):
		case pod.Spec.HostNetwork:
			say.Warnf(kube.RefOf(pod), "", "it does not leave from EgressAddress %q, since it uses the network of its node: exclude it by spec.podSelector", a.Name)
			return nil
		case found == nil:
			found = a
		default:
			say.Warnf(kube.RefOf(pod), "", "EgressAddresses %q and %q select it, and it leaves from the first, which is older: have one select it", found.Name, a.Name)
			return found
		}
	}
	return found
}
