package advertise

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
)

// sets remembers, by the names of advertisements, the nodes that one of them selects, and those of them that may
// announce what every node serves. before are the latter of the last rules.
type sets struct {
	nodes              map[string][]announce.Node
	everywhere, before map[string][]string
}

// mostSets is how many combinations of advertisements are remembered. Users choose labels of Services, and with them
// which advertisements are for an address together.
const mostSets = 256

func newSets(before *rules) sets {
	s := sets{nodes: map[string][]announce.Node{}, everywhere: map[string][]string{}}
	if before != nil {
		s.before = before.sets.everywhere
	}
	return s
}

// eligible returns the nodes that may announce an address which advertisements cover. Of addresses whose Services are
// served everywhere it is one list for the same advertisements.
func (r *rules) eligible(ads []*ad, at *address) []string {
	var b strings.Builder
	for _, a := range ads {
		b.WriteString(a.ref.Kind)
		b.WriteByte(0)
		b.WriteString(a.ref.Name)
		b.WriteByte(0)
	}
	key := b.String()
	if len(r.sets.nodes) > mostSets {
		clear(r.sets.nodes)
		clear(r.sets.everywhere)
	}
	nodes, known := r.sets.nodes[key]
	if !known {
		nodes = r.selected(ads)
		r.sets.nodes[key] = nodes
	}
	if slices.ContainsFunc(at.services, func(m member) bool { return m.ExternalLocal }) {
		return announce.Eligible(nodes, r.needs(at))
	}
	list, known := r.sets.everywhere[key]
	if !known {
		list = announce.Eligible(nodes, []announce.Needs{{}})
		if before := r.sets.before[key]; slices.Equal(before, list) {
			list = before
		}
		r.sets.everywhere[key] = list
	}
	return list
}

// selected returns the nodes for the advertisements of which one has to select a node.
func (r *rules) selected(ads []*ad) []announce.Node {
	list := make([]announce.Node, 0, len(r.objs.Nodes))
	for _, n := range r.objs.Nodes {
		_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
		chosen := slices.ContainsFunc(ads, func(a *ad) bool { return a.on.Matches(labels.Set(n.Labels)) })
		list = append(list, announce.Node{Name: n.Name, Excluded: excluded || !hasAgent(n) || !chosen, Leaving: kube.Leaving(n)})
	}
	return list
}

// hasAgent reports whether a node is one of those that run an agent.
func hasAgent(n *corev1.Node) bool {
	return n.Annotations[kube.StockAnnotation] != "true" && n.Labels[kube.ExternalLabel] != "true"
}

// ranked returns the eligible nodes of an address in its order: as they were, where they are the same. With 50,000
// addresses and hundreds of nodes it takes seconds to rank them all.
func (a *address) ranked(before *address) []string {
	if before != nil && before.link != nil && (kube.Same(before.eligible, a.eligible) || slices.Equal(before.eligible, a.eligible)) {
		return before.link.Ranked
	}
	return announce.Rank(a.Addr, a.eligible)
}
