package pods

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
)

// Broken is a pod of this node that runs, and that only a new sandbox gives back its network.
type Broken struct {
	Pod   kube.Ref
	UID   string
	Addrs []netip.Addr // as its Pod object names them
	// OldRange is set when its addresses lie outside of the node's present ranges, so that other nodes do not reach it.
	// Otherwise nobody has its TAP.
	OldRange bool
	// Managed is set when a controller makes another pod in its place.
	Managed bool
}

// Broken returns the broken ones of this node's pods, in the order of list. byObject also believes a Pod object that is
// Running without a lease of its addresses, where whoever attaches pods takes no leases.
//
// Nobody else notices a pod whose TAP is gone: its sandbox runs on, the runtime reports the address that it once set
// up, and kubelet makes a sandbox anew only when that is missing.
func (p *Registry) Broken(list []*corev1.Pod, node string, byObject bool) []Broken {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.attacher == nil {
		return nil
	}
	held := map[string][]netip.Addr{}
	for _, l := range p.leases.Held() {
		name := l.Namespace + "/" + l.Name
		held[name] = append(held[name], l.Addrs...)
	}
	ranges, _ := p.attacher.PodRanges()
	var out []Broken
	for _, pod := range list {
		addrs := addrsOf(pod)
		if !living(pod, node) || len(addrs) == 0 {
			continue
		}
		name := pod.Namespace + "/" + pod.Name
		b := Broken{Pod: kube.Ref{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name}, UID: string(pod.UID), Addrs: addrs, Managed: managed(pod)}
		switch {
		case p.attacher.Attached(name):
			b.OldRange = slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !addressing.Contains(ranges, a) })
			if !b.OldRange {
				continue
			}
		case slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(held[name], a) }):
		case byObject && pod.Status.Phase == corev1.PodRunning:
		default:
			continue // it has no sandbox, or is just being given another one
		}
		out = append(out, b)
	}
	return out
}

// Claimed reports whether a living Pod of the node says that it has one of the addresses.
func Claimed(list []*corev1.Pod, node, namespace, name string, addrs []netip.Addr) bool {
	return slices.ContainsFunc(list, func(pod *corev1.Pod) bool {
		return pod.Namespace == namespace && pod.Name == name && living(pod, node) &&
			slices.ContainsFunc(addrsOf(pod), func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	})
}

// living reports whether a pod is in the pods' network of this node, has not ended and is not about to.
func living(pod *corev1.Pod, node string) bool {
	return pod.Spec.NodeName == node && !pod.Spec.HostNetwork && pod.DeletionTimestamp == nil &&
		pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

func addrsOf(pod *corev1.Pod) (list []netip.Addr) {
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			list = append(list, a.Unmap())
		}
	}
	return list
}

// managed reports whether a controller has the pod. A static pod's is its Node: kubelet does not make its sandbox anew
// when the Pod object is deleted.
func managed(pod *corev1.Pod) bool {
	owner := metav1.GetControllerOf(pod)
	return owner != nil && owner.Kind != "Node"
}
