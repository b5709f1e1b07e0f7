package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
)

// What the lab uses where the files say nothing.
var (
	defaultUnderlay = []netip.Prefix{netip.MustParsePrefix("172.31.0.0/24"), netip.MustParsePrefix("fd00:172:31::/64")}
	defaultServices = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
)

const (
	// firstNode is the place in the underlay's subnet just before the first node's.
	firstNode = 10
	// firstPod is the place of the first pod in a pod range. The stack, the host TAP and some spare room come before
	// it.
	firstPod = 10
	// dnsPlace is the place of the cluster DNS in a service range, as in kubeadm.
	dnsPlace = 10
)

// nodes gives every Node its place, its underlay addresses and its pod ranges.
func (w *work) nodes() {
	w.places()
	w.subnets()
	taken := map[netip.Addr]string{}
	for i, a := range w.next.underlay.Outside {
		taken[a] = "the outside client"
		taken[w.next.underlay.Prefixes[i].Masked().Addr()] = "the subnet itself"
	}
	for _, obj := range w.objects.Nodes { // what Nodes ask for comes first
		for _, a := range internalIPs(obj) {
			if owner, dup := taken[a]; dup {
				w.fail(obj, "status.addresses", "%s belongs to %s already: choose another", a, owner)
			}
			if !addressing.Contains(w.next.underlay.Prefixes, a) {
				w.fail(obj, "status.addresses", "%s is not in the underlay's %v, where the first Node's is: choose one of there", a, w.next.underlay.Prefixes)
			}
			taken[a] = "Node " + obj.Name
		}
	}
	ranges := slices.Clone(w.next.underlay.Prefixes)
	for _, obj := range w.objects.Nodes {
		ranges = append(ranges, writtenCIDRs(obj)...)
		w.leaveOthers(obj, writtenCIDRs(obj))
	}
	for _, obj := range w.objects.Nodes {
		node := Node{Name: obj.Name, External: obj.Labels[kube.ExternalLabel] == "true", Addrs: internalIPs(obj)}
		place := w.next.index[obj.Name]
		if len(node.Addrs) == 0 {
			for _, p := range w.next.underlay.Prefixes {
				a := freeFrom(p, nth(p, firstNode+place), taken)
				if !a.IsValid() {
					w.fail(obj, "status.addresses", "the underlay's %s is full", p)
					continue
				}
				taken[a] = "Node " + obj.Name
				node.Addrs = append(node.Addrs, a)
			}
		}
		if node.PodCIDRs = w.podCIDRs(obj, place, ranges); len(node.PodCIDRs) == 0 {
			continue
		}
		ranges = append(ranges, node.PodCIDRs...)
		completeNode(obj, node)
		w.next.nodes[obj.Name] = node
		w.nodeList = append(w.nodeList, node)
	}
}

// places numbers the nodes from 1. A node keeps its number.
func (w *work) places() {
	used := map[int]bool{}
	for _, obj := range w.objects.Nodes {
		if i, ok := w.old.index[obj.Name]; ok {
			w.next.index[obj.Name] = i
			used[i] = true
		}
	}
	next := 1
	for _, obj := range w.objects.Nodes {
		if _, ok := w.next.index[obj.Name]; ok {
			continue
		}
		for used[next] {
			next++
		}
		used[next] = true
		w.next.index[obj.Name] = next
	}
}

// subnets chooses the underlay's subnets, once in the life of a lab. They are the subnets of the first addresses that
// Nodes ask for.
func (w *work) subnets() {
	if len(w.next.underlay.Prefixes) > 0 {
		return
	}
	asked := map[netip.Addr]bool{}
	var first [2]netip.Addr
	for _, obj := range w.objects.Nodes {
		for _, a := range internalIPs(obj) {
			asked[a] = true
			if i := family(a); !first[i].IsValid() {
				first[i] = a
			}
		}
	}
	for i, p := range defaultUnderlay {
		if first[i].IsValid() {
			p = netip.PrefixFrom(first[i], p.Bits()).Masked()
		}
		outside := nth(p, 1)
		for asked[outside] {
			outside = outside.Next()
		}
		w.next.underlay.Prefixes = append(w.next.underlay.Prefixes, p)
		w.next.underlay.Outside = append(w.next.underlay.Outside, outside)
	}
}

// podRanges are the ranges of which Nodes are given theirs.
var podRanges = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}

// podCIDRs returns the ranges that the Node's object names, else those that it already has, else the first free ones of
// podRanges.
func (w *work) podCIDRs(obj *corev1.Node, place int, taken []netip.Prefix) []netip.Prefix {
	if cidrs := writtenCIDRs(obj); len(cidrs) > 0 {
		return cidrs
	}
	free := func(list []netip.Prefix) bool {
		return len(list) > 0 && !slices.ContainsFunc(list, func(p netip.Prefix) bool {
			return slices.ContainsFunc(taken, p.Overlaps)
		})
	}
	if old := w.old.nodes[obj.Name].PodCIDRs; free(old) {
		return old
	}
	for n := place; n < place+256; n++ {
		list := []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, 2, 0x44, 0, byte(n)}), 64),
		}
		if free(list) {
			return list
		}
	}
	w.fail(obj, "spec.podCIDRs", "no free range of 10.244.0.0/16 is left: give the Node one")
	return nil
}

// leaveOthers refuses ranges that another Node was given and keeps: its pods have addresses there.
func (w *work) leaveOthers(obj *corev1.Node, cidrs []netip.Prefix) {
	for _, other := range w.objects.Nodes {
		if other.Name == obj.Name || len(writtenCIDRs(other)) > 0 {
			continue
		}
		for _, theirs := range w.old.nodes[other.Name].PodCIDRs {
			if i := slices.IndexFunc(cidrs, theirs.Overlaps); i >= 0 {
				w.fail(obj, "spec.podCIDRs", "%s overlaps %s, which Node %s keeps: choose another range", cidrs[i], theirs, other.Name)
			}
		}
	}
}

func writtenCIDRs(obj *corev1.Node) []netip.Prefix {
	var cidrs []netip.Prefix
	for _, s := range kube.PodCIDRs(obj) {
		if p, err := netip.ParsePrefix(s); err == nil {
			cidrs = append(cidrs, p.Masked())
		}
	}
	return cidrs
}

// completeNode writes the decisions into the object.
func completeNode(obj *corev1.Node, n Node) {
	setLabel(obj, corev1.LabelHostname, obj.Name)
	switch {
	case len(obj.Spec.PodCIDRs) > 0: // right or wrong, the file says so
	case obj.Spec.PodCIDR != "":
		obj.Spec.PodCIDRs = []string{obj.Spec.PodCIDR}
	default:
		for _, p := range n.PodCIDRs {
			obj.Spec.PodCIDRs = append(obj.Spec.PodCIDRs, p.String())
		}
	}
	obj.Spec.PodCIDR = obj.Spec.PodCIDRs[0]
	if len(internalIPs(obj)) > 0 {
		return
	}
	for _, a := range n.Addrs {
		obj.Status.Addresses = append(obj.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
}

func internalIPs(obj *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range obj.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			out = append(out, ip)
		}
	}
	return out
}

// kubePodIPs returns the addresses that a pod asks for.
func kubePodIPs(pod *corev1.Pod) ([]netip.Addr, error) {
	written := pod.Annotations[kube.PodIPsAnnotation]
	if written == "" {
		return nil, nil
	}
	var out []netip.Addr
	for _, s := range strings.Split(written, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("%w: expected addresses like \"10.244.1.5,fd00:10:244:1::5\"", err)
		}
		out = append(out, a)
	}
	return out, nil
}

// podAddrs gives every pod its addresses: first to pods that ask for some, then to pods that have some, then to the
// rest.
func (w *work) podAddrs() {
	w.podIPs = map[string][]netip.Addr{}
	taken := map[netip.Addr]string{}
	for _, pod := range w.objects.Pods {
		if !pod.Spec.HostNetwork {
			w.askedAddrs(pod, taken)
		}
	}
	for _, pod := range w.objects.Pods {
		if w.podIPs[podKey(pod)] == nil && !pod.Spec.HostNetwork {
			w.keepAddrs(pod, taken)
		}
	}
	for _, pod := range w.next.leaving {
		for _, ip := range pod.Status.PodIPs {
			taken[netip.MustParseAddr(ip.IP)] = "Pod " + podKey(pod)
		}
	}
	for _, pod := range w.objects.Pods {
		key := podKey(pod)
		node := w.next.nodes[pod.Spec.NodeName]
		if pod.Spec.HostNetwork {
			w.podIPs[key] = node.Addrs
		}
		if w.podIPs[key] != nil {
			continue
		}
		for _, cidr := range node.PodCIDRs {
			from := w.next.lastPod[cidr]
			if from.IsValid() {
				from = from.Next()
			}
			a := freeFrom(cidr, from, taken)
			if !a.IsValid() {
				w.fail(pod, "", "%s of Node %s is full: give the Node a larger podCIDR or the pod another Node", cidr, node.Name)
				continue
			}
			taken[a] = "Pod " + key
			w.next.lastPod[cidr] = a
			w.podIPs[key] = append(w.podIPs[key], a)
		}
	}
}

func (w *work) askedAddrs(pod *corev1.Pod, taken map[netip.Addr]string) {
	const field = "metadata.annotations[" + kube.PodIPsAnnotation + "]"
	node := w.next.nodes[pod.Spec.NodeName]
	asked, err := kubePodIPs(pod)
	if err != nil {
		w.fail(pod, field, "%v", err)
		return
	}
	for _, a := range asked {
		i := slices.IndexFunc(node.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
		if i < 0 {
			w.fail(pod, field, "%s is not in the podCIDRs %v of Node %s: choose one of there", a, node.PodCIDRs, node.Name)
		} else if addressing.Reserved(node.PodCIDRs[i], a) {
			w.fail(pod, field, "%s is reserved (network, stack, host TAP or broadcast): choose another", a)
		}
		taken[a] = "Pod " + podKey(pod)
	}
	if len(asked) > 0 {
		w.podIPs[podKey(pod)] = asked
	}
}

// keepAddrs keeps a running pod's addresses, unless the pod moved or another pod asks for them.
func (w *work) keepAddrs(pod *corev1.Pod, taken map[netip.Addr]string) {
	old, ok := w.old.pods[podKey(pod)]
	if !ok || old.pod.Spec.HostNetwork || old.pod.Annotations[kube.PodIPsAnnotation] != "" {
		return
	}
	node := w.next.nodes[pod.Spec.NodeName]
	var kept []netip.Addr
	for _, ip := range old.pod.Status.PodIPs {
		a := netip.MustParseAddr(ip.IP)
		if taken[a] != "" || !addressing.Contains(node.PodCIDRs, a) {
			return
		}
		kept = append(kept, a)
	}
	if len(kept) != len(node.PodCIDRs) {
		return
	}
	for _, a := range kept {
		taken[a] = "Pod " + podKey(pod)
	}
	w.podIPs[podKey(pod)] = kept
}

// serviceRanges takes the ServiceCIDRs of the files, or the default ranges.
func (w *work) serviceRanges() {
	for _, obj := range w.objects.ServiceCIDRs {
		for i, s := range obj.Spec.CIDRs {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				w.fail(obj, fmt.Sprintf("spec.cidrs[%d]", i), "%v: expected a range like 10.96.0.0/16", err)
				continue
			}
			w.ranges = append(w.ranges, p.Masked())
		}
	}
	if len(w.objects.ServiceCIDRs) == 0 {
		w.ranges = slices.Clone(defaultServices)
		obj := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}}
		for _, p := range w.ranges {
			obj.Spec.CIDRs = append(obj.Spec.CIDRs, p.String())
		}
		obj.UID = uid(kube.RefOf(obj), 0)
		w.objects.ServiceCIDRs = append(w.objects.ServiceCIDRs, obj)
	}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// nth returns the address n places after the network address.
func nth(p netip.Prefix, n int) netip.Addr {
	b := p.Masked().Addr().As16()
	for i := 15; n > 0 && i >= 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// freeFrom finds the next free address of a range. It wraps around to place firstPod. The result is invalid when the
// range is full.
func freeFrom(p netip.Prefix, from netip.Addr, taken map[netip.Addr]string) netip.Addr {
	first := nth(p, firstPod)
	if !from.IsValid() || !p.Contains(from) {
		from = first
	}
	for a, wrapped := from, false; ; a = a.Next() {
		if !p.Contains(a) || a.Is4() && !p.Contains(a.Next()) {
			if wrapped {
				return netip.Addr{}
			}
			a, wrapped = first, true
			if !p.Contains(a) {
				return netip.Addr{}
			}
		}
		if _, used := taken[a]; !used {
			return a
		}
		if wrapped && a == from {
			return netip.Addr{}
		}
	}
}
