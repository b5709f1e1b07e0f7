package manifests

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/controlplane"
	"tapestry.dev/tapestry/kube/translate"
)

// Validate returns the problems of a cluster before it is started, errors first. Services without a cluster address
// or a node port are checked as controlplane.Allocate would complete them.
func Validate(objs kube.Objects) []kube.Problem {
	objs, problems := controlplane.Allocate(objs)
	v := validator{objs: &objs, nodes: map[string]*corev1.Node{}}
	for _, n := range objs.Nodes {
		v.nodes[n.Name] = n
	}
	v.names()
	v.ranges()
	v.pods()
	v.clusterIPs()
	v.selectors()
	problems = slices.Concat(problems, v.problems, translate.Check(objs))
	kube.SortProblems(problems)
	return problems
}

type validator struct {
	objs     *kube.Objects
	nodes    map[string]*corev1.Node
	problems []kube.Problem
}

func (v *validator) problem(s kube.Severity, ref kube.Ref, field, message string) {
	v.problems = append(v.problems, kube.Problem{
		Severity: s, Object: ref, Origin: v.objs.Origin[ref], Field: field, Message: message,
	})
}

func (v *validator) error(ref kube.Ref, field, message string) {
	v.problem(kube.Error, ref, field, message)
}

// names checks names by the rules of apimachinery.
func (v *validator) names() {
	for obj := range v.objs.All() {
		ref := kube.RefOf(obj)
		rule := validation.NameIsDNSSubdomain
		if ref.Kind == "Namespace" || ref.Kind == "Service" {
			rule = validation.NameIsDNSLabel
		}
		for _, msg := range rule(ref.Name, false) {
			v.error(ref, "metadata.name", strconv.Quote(ref.Name)+" is not a valid name: "+msg)
		}
		if ref.Namespace == "" {
			continue
		}
		for _, msg := range validation.NameIsDNSLabel(ref.Namespace, false) {
			v.error(ref, "metadata.namespace", strconv.Quote(ref.Namespace)+" is not a valid name: "+msg)
		}
	}
}

// ranges checks that pod ranges, service ranges and node addresses do not overlap. Package translate checks that pod
// ranges do not overlap one another.
func (v *validator) ranges() {
	services := translate.ServiceRanges(*v.objs)
	for _, n := range v.objs.Nodes {
		ref := kube.RefOf(n)
		for i, p := range podCIDRs(n) {
			for _, s := range services {
				if p.IsValid() && p.Overlaps(s) {
					v.error(ref, "spec.podCIDRs["+strconv.Itoa(i)+"]", p.String()+" overlaps the service range "+s.String()+": choose another range")
				}
			}
		}
		for i, a := range n.Status.Addresses {
			addr, err := netip.ParseAddr(a.Address)
			if a.Type != corev1.NodeInternalIP || err != nil {
				continue
			}
			if in := v.clusterRange(addr, services); in != "" {
				v.error(ref, "status.addresses["+strconv.Itoa(i)+"].address", addr.String()+" is inside of "+in+": a node's address must lie outside of the cluster's ranges")
			}
		}
	}
}

func (v *validator) clusterRange(addr netip.Addr, services []netip.Prefix) string {
	for _, s := range services {
		if s.Contains(addr) {
			return "the service range " + s.String()
		}
	}
	for _, n := range v.objs.Nodes {
		for _, p := range podCIDRs(n) {
			if p.Contains(addr) {
				return p.String() + ", the pod range of Node " + n.Name
			}
		}
	}
	return ""
}

// podCIDRs parses the pod ranges of a node. A range that cannot be parsed becomes a zero Prefix, so that indexes stay
// right.
func podCIDRs(n *corev1.Node) []netip.Prefix {
	texts := kube.PodCIDRs(n)
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			list[i] = p.Masked()
		}
	}
	return list
}

func (v *validator) pods() {
	owners := map[netip.Addr]kube.Ref{}
	for _, p := range v.objs.Pods {
		ref := kube.RefOf(p)
		n, ok := v.nodes[p.Spec.NodeName]
		switch {
		case ok && n.Labels[kube.ExternalLabel] == "true":
			v.error(ref, "spec.nodeName", "Node "+n.Name+" has the label "+kube.ExternalLabel+", so that no pod can be started there: choose another node")
		case !ok && p.Spec.NodeName != "":
			v.error(ref, "spec.nodeName", "there is no Node "+p.Spec.NodeName+": add it, or remove the field to let any node run the pod")
		}
		if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue // the pod has no address of its own
		}
		if text := p.Annotations[kube.PodIPsAnnotation]; text != "" {
			v.podAddrs(p, "metadata.annotations["+kube.PodIPsAnnotation+"]", strings.Split(text, ","), owners)
		}
		var assigned []string
		for _, ip := range p.Status.PodIPs {
			assigned = append(assigned, ip.IP)
		}
		v.podAddrs(p, "status.podIPs", assigned, owners)
	}
}

func (v *validator) podAddrs(p *corev1.Pod, field string, texts []string, owners map[netip.Addr]kube.Ref) {
	ref := kube.RefOf(p)
	var family [2]bool
	for _, text := range texts {
		addr, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			v.error(ref, field, strconv.Quote(text)+" is not an address: expected one like 10.244.1.5")
			continue
		}
		addr = addr.Unmap()
		if i := addr.BitLen() / 128; family[i] {
			v.error(ref, field, addr.String()+" is a second address of its family: a pod has at most one IPv4 and one IPv6 address")
		} else {
			family[i] = true
		}
		if owner, taken := owners[addr]; taken && owner != ref {
			v.error(ref, field, addr.String()+" is the address of "+owner.String()+" already: choose another")
		}
		owners[addr] = ref
		v.podAddrPlace(p, field, addr)
	}
}

// podAddrPlace checks that the address is in the range of the pod's node (or of any node while the pod has none), and
// that it is not one of those that the node keeps for itself.
func (v *validator) podAddrPlace(p *corev1.Pod, field string, addr netip.Addr) {
	ref := kube.RefOf(p)
	candidates, where := v.objs.Nodes, "any Node"
	if p.Spec.NodeName != "" {
		n, ok := v.nodes[p.Spec.NodeName]
		if !ok {
			return // reported by pods
		}
		candidates, where = []*corev1.Node{n}, "Node "+n.Name
	}
	var ranges []string
	for _, n := range candidates {
		for _, cidr := range podCIDRs(n) {
			if !cidr.IsValid() {
				continue
			}
			if !cidr.Contains(addr) {
				ranges = append(ranges, cidr.String())
				continue
			}
			if addressing.Reserved(cidr, addr) {
				v.error(ref, field, addr.String()+" is kept for Node "+n.Name+" itself, like the ends and the first two addresses of every podCIDR: choose another")
			}
			return
		}
	}
	if len(ranges) == 0 {
		ranges = []string{"none"}
	}
	v.error(ref, field, addr.String()+" is outside of the podCIDRs of "+where+" ("+strings.Join(ranges, ", ")+"): choose an address inside of them")
}

// clusterIPs checks that cluster addresses are in a service range. Package translate checks that no two Services
// share one.
func (v *validator) clusterIPs() {
	ranges := translate.ServiceRanges(*v.objs)
	var texts []string
	for _, r := range ranges {
		texts = append(texts, r.String())
	}
	for _, s := range v.objs.Services {
		list := s.Spec.ClusterIPs
		if len(list) == 0 {
			list = []string{s.Spec.ClusterIP}
		}
		for _, text := range list {
			addr, err := netip.ParseAddr(text)
			if err != nil || s.Spec.Type == corev1.ServiceTypeExternalName {
				continue
			}
			if !addressing.Contains(ranges, addr) {
				v.error(kube.RefOf(s), "spec.clusterIP", addr.String()+" is outside of the service ranges ("+strings.Join(texts, ", ")+"): choose an address inside, or remove the field to be given one")
			}
		}
	}
}

func (v *validator) selectors() {
	for _, s := range v.objs.Services {
		if len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		if !slices.ContainsFunc(v.objs.Pods, func(p *corev1.Pod) bool { return controlplane.Selects(s, p) }) {
			v.problem(kube.Warning, kube.RefOf(s), "spec.selector", "matches no Pod in namespace "+s.Namespace+", so that connections are refused: compare it with the labels of the pods")
		}
	}
}
