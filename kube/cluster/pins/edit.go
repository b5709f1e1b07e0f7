package pins

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
)

// refused replaces the type of an address that is not believed, so that later addresses keep their index.
const refused corev1.NodeAddressType = "Refused"

// edited is a copy of a Node without what is not believed, and the verdict that led to it.
type edited struct {
	by   verdict
	node *corev1.Node
}

// edit returns the nodes as they are believed. It returns the same copy for the same Node and verdict.
func (p *Pins) edit(nodes []*corev1.Node, verdicts []verdict) []*corev1.Node {
	copies := map[*corev1.Node]edited{}
	list := nodes
	for i, n := range nodes {
		v := verdicts[i]
		p.problems = append(p.problems, v.problems...)
		if v.key == n.Annotations[kube.PublicKeyAnnotation] && len(v.cidrs)+len(v.addrs) == 0 {
			continue
		}
		c, known := p.copies[n]
		if !known || c.by.key != v.key || !slices.Equal(c.by.cidrs, v.cidrs) || !slices.Equal(c.by.addrs, v.addrs) {
			c = edited{v, v.without(n)}
		}
		if len(copies) == 0 {
			list = slices.Clone(nodes)
		}
		copies[n] = c
		list[i] = c.node
	}
	p.copies = copies
	return list
}

// without returns a copy of n with only what is believed.
func (v *verdict) without(n *corev1.Node) *corev1.Node {
	c := *n
	if v.key != n.Annotations[kube.PublicKeyAnnotation] {
		c.Annotations = maps.Clone(n.Annotations)
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		c.Annotations[kube.PublicKeyAnnotation] = v.key
	}
	if len(v.cidrs) > 0 {
		c.Spec.PodCIDR, c.Spec.PodCIDRs = "", nil
		for i, text := range kube.PodCIDRs(n) {
			if !slices.Contains(v.cidrs, i) {
				c.Spec.PodCIDRs = append(c.Spec.PodCIDRs, text)
			}
		}
	}
	if len(v.addrs) > 0 {
		c.Status.Addresses = slices.Clone(n.Status.Addresses)
		for _, i := range v.addrs {
			c.Status.Addresses[i].Type = refused
		}
	}
	return &c
}
