package pins

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/addressing"
)

// Rules configures whom an agent believes.
type Rules struct {
	// Self is the name of this node. Claims of its own Node are always believed, and take precedence over all others.
	Self string
	// NodeCIDRs are the ranges in which other nodes' addresses must lie. When there are none, addresses must be
	// private, except in an address family in which this node's own address is not private.
	NodeCIDRs []netip.Prefix
}

// controlPlane lists the labels of nodes on which API servers run. The admission plugin NodeRestriction does not let
// kubelets set them.
var controlPlane = []string{"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"}

// ControlPlaneKey reports whether a label says that API servers run on a node.
func ControlPlaneKey(key string) bool { return slices.Contains(controlPlane, key) }

// public says in which families this node's own ranges are not private. Index 0 is IPv4, 1 is IPv6.
type public struct{ addrs, pods [2]bool }

func publicOf(own []*claim) (p public) {
	for _, c := range own {
		which := &p.addrs
		if c.pods {
			which = &p.pods
		}
		which[family(c)] = which[family(c)] || !addressing.Private(c.Prefix)
	}
	return p
}

func family(c *claim) int { return c.Addr().BitLen() / 128 }

// forbids says why another node cannot have a range, whoever else claims it; "" when the node can have it.
func (r *Rules) forbids(c *claim, q *Question, own public) string {
	overlaps := func(p netip.Prefix) bool { return p.Overlaps(c.Prefix) }
	if i := slices.IndexFunc(q.Services, overlaps); i >= 0 {
		return fmt.Sprintf("%s lies in the service range %s or around it, and is left out: give the node one outside of it", c, q.Services[i])
	}
	if !c.pods && slices.ContainsFunc(addressing.Metadata, overlaps) {
		return fmt.Sprintf("%s is where a cloud hands out credentials, and is left out: correct it", c)
	}
	if i := slices.IndexFunc(q.Servers, c.Contains); i >= 0 && (c.pods || !onControlPlane(c.node)) {
		return fmt.Sprintf("%s is or contains %s, where an API server is, and is left out: if that server runs on this node, label the node %s", c, q.Servers[i], controlPlane[0])
	}
	switch {
	case c.pods && !addressing.Private(c.Prefix) && !own.pods[family(c)]:
		return fmt.Sprintf("%s is not in a private range as this node's own pods are, and is left out: give the node a range of the cluster's", c)
	case c.pods:
	case len(r.NodeCIDRs) > 0 && !addressing.Within(r.NodeCIDRs, c.Prefix):
		return fmt.Sprintf("%s lies in none of the ranges of nodes (--node-cidr: %s), and is left out: correct it, or name its range there", c, join(r.NodeCIDRs))
	case len(r.NodeCIDRs) == 0 && !addressing.Private(c.Prefix) && !own.addrs[family(c)]:
		return fmt.Sprintf("%s is a public address and this node's own is not, so that it is left out: correct it, or name its range with --node-cidr", c)
	}
	return ""
}

func onControlPlane(n *corev1.Node) bool {
	return slices.ContainsFunc(controlPlane, func(key string) bool { _, ok := n.Labels[key]; return ok })
}

func join(list []netip.Prefix) string {
	var texts []string
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ", ")
}
