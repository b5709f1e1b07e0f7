package policies

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
)

// podOf returns a pod as policies see it, nil for one that has ended, or that uses the network of its node: that is the
// node.
func podOf(obj *corev1.Pod) *policy.Pod {
	if obj.Spec.HostNetwork || obj.Status.Phase == corev1.PodSucceeded || obj.Status.Phase == corev1.PodFailed {
		return nil
	}
	p := &policy.Pod{Namespace: obj.Namespace, Name: obj.Name, UID: uidOf(obj), Node: obj.Spec.NodeName, Labels: law.LabelsOf(obj.Labels), Ports: portsOf(kube.NamedPorts(&obj.Spec))}
	for _, text := range kube.PodIPs(obj) {
		if obj.Spec.NodeName == "" {
			break // nobody has given it an address
		}
		if a, err := netip.ParseAddr(text); err == nil { // others are told elsewhere
			p.Addrs = append(p.Addrs, a.Unmap())
		}
	}
	if len(obj.Labels) > kube.MaxPodLabels {
		p.Labels, p.Vague = nil, true
	}
	return p
}

// uidOf returns the UID as which the kubelet runs a pod. Of a static pod the API server has a mirror with another UID,
// and an annotation with the pod's.
func uidOf(obj *corev1.Pod) string {
	if uid, mirror := obj.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return uid
	}
	return string(obj.UID)
}

// tellPod tells of a pod of this node of which policies do not know all.
func tellPod(obj *corev1.Pod, say *kube.Report) {
	if n := len(kube.NamedPorts(&obj.Spec)); n > mostPorts && !obj.Spec.HostNetwork {
		say.Warnf(kube.RefOf(obj), "spec.containers", "it has %d ports with names, and policies know the first %d of them: name fewer", n, mostPorts)
	}
	if len(obj.Labels) > kube.MaxPodLabels && !obj.Spec.HostNetwork {
		say.Errorf(kube.RefOf(obj), "metadata.labels", "it has more than %d labels, so where its namespace has NetworkPolicies, or there are ClusterNetworkPolicies, it reaches nobody, and nobody reaches it: remove some of them", kube.MaxPodLabels)
	}
}

// mostPorts is how many ports with names a pod can be reached at by name. They are looked through for new flows to it.
const mostPorts = 256

// portsOf returns the ports that have names, the first ones where there are too many.
func portsOf(list []kube.NamedPort) (out []law.NamedPort) {
	for _, p := range list {
		if proto, known := protocols[p.Protocol]; known && len(out) < mostPorts {
			out = append(out, law.NamedPort{Name: p.Name, Proto: proto, Port: p.Port})
		}
	}
	return out
}

// otherOf returns a pod of another node as policies see it.
func otherOf(obj *kube.OtherPod) *policy.Pod {
	p := &policy.Pod{Namespace: obj.Namespace, Name: obj.Name, Node: obj.Node, Labels: law.LabelsOf(obj.Labels), Addrs: obj.Addrs, Ports: portsOf(obj.Ports)}
	if len(obj.Labels) > kube.MaxPodLabels {
		p.Labels, p.Vague = nil, true
	}
	return p
}
