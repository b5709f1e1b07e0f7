package cluster

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
)

// own remembers this node's Node. While the Node is gone, or is back without a podCIDR, its last good version is
// used: kubelet will create it again, and the pods that run here need a network meanwhile.
type own struct {
	name string
	last *corev1.Node // the last version with a podCIDR

	// The last answer, kept to return the same list for the same nodes.
	nodes, filled []*corev1.Node
}

func (o *own) in(nodes []*corev1.Node, problems *[]kube.Problem) []*corev1.Node {
	i, found := slices.BinarySearchFunc(nodes, o.name, func(n *corev1.Node, name string) int { return objectName{"", n.Name}.compare(objectName{"", name}) })
	if found && len(kube.PodCIDRs(nodes[i])) > 0 {
		o.last = nodes[i]
		return nodes
	}
	if o.last == nil {
		return nodes
	}
	*problems = append(*problems, kube.Problem{
		Severity: kube.Error, Object: kube.Ref{Kind: "Node", Name: o.name},
		Message: "the Node object is gone, or has lost its podCIDR, while its agent runs: pods keep their network until the Node is back. Restart kubelet if it does not create the Node",
	})
	if !kube.Same(o.nodes, nodes) || len(nodes) == 0 {
		o.nodes, o.filled = nodes, slices.Clone(nodes)
		if found {
			o.filled[i] = o.last
		} else {
			o.filled = slices.Insert(o.filled, i, o.last)
		}
	}
	return o.filled
}
