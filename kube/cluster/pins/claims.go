package pins

import (
	"cmp"
	"encoding/base64"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
)

// claim is a range that a Node claims: a podCIDR, or an address.
type claim struct {
	node  *corev1.Node
	pods  bool // the range is a podCIDR
	index int  // in spec.podCIDRs or status.addresses
	netip.Prefix
}

// field returns the path of the field that makes the claim.
func (c *claim) field() string {
	if c.pods {
		return "spec.podCIDRs[" + strconv.Itoa(c.index) + "]"
	}
	return "status.addresses[" + strconv.Itoa(c.index) + "].address"
}

// String returns the range, or the address when the range has only one.
func (c *claim) String() string {
	if c.IsSingleIP() {
		return c.Addr().String()
	}
	return c.Prefix.String()
}

// said is everything that a Node claims.
type said struct {
	claims []*claim
	text   string // all claims, in the form that a pin has
}

func readNode(n *corev1.Node) *said {
	claims := claimsOf(n)
	return &said{claims, write(claims)}
}

// without returns the text of the claims that a verdict leaves.
func (s *said) without(v *verdict) string {
	if len(v.cidrs)+len(v.addrs) == 0 {
		return s.text
	}
	return write(slices.DeleteFunc(slices.Clone(s.claims), func(c *claim) bool {
		return c.pods && slices.Contains(v.cidrs, c.index) || !c.pods && slices.Contains(v.addrs, c.index)
	}))
}

func write(claims []*claim) string {
	var texts []string
	for _, c := range claims {
		texts = append(texts, c.String())
	}
	slices.Sort(texts)
	return strings.Join(texts, " ")
}

// claimsOf returns the claims of a Node. It skips what package translate refuses anyway.
func claimsOf(n *corev1.Node) []*claim {
	var list []*claim
	for i, text := range kube.PodCIDRs(n) {
		if p, err := netip.ParsePrefix(text); err == nil {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked()
			if p.IsValid() {
				list = append(list, &claim{n, true, i, p})
			}
		}
	}
	for i, a := range n.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if a.Type != corev1.NodeInternalIP || err != nil || addressing.Special(addr) != "" {
			continue
		}
		p := addressing.Whole(addr.Unmap())
		if !slices.ContainsFunc(list, func(c *claim) bool { return !c.pods && c.Prefix == p }) {
			list = append(list, &claim{n, false, i, p})
		}
	}
	return list
}

// precedence decides between claims: this node's own come first, then those that were believed before, then those of
// the older Node. The API server writes a Node's creation time and UID, so nobody can choose them.
type precedence struct {
	self   string // the name of this node
	holds  func(*claim) bool
	hasKey func(n *corev1.Node, key string) bool
}

func (p *precedence) claims(a, b *claim) int {
	return cmp.Or(p.nodes(a.node, b.node, p.holds(a), p.holds(b)), cmp.Compare(a.field(), b.field()))
}

func (p *precedence) nodes(a, b *corev1.Node, aHolds, bHolds bool) int {
	return cmp.Or(
		before(a.Name == p.self, b.Name == p.self), before(aHolds, bHolds),
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID), cmp.Compare(a.Name, b.Name),
	)
}

func before(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// conflict is a claim that lost to another.
type conflict struct{ lost, to *claim }

// decide returns the claims that lose: of two that overlap, the one that comes later in order.
func decide(claims []*claim, order func(a, b *claim) int) []conflict {
	contested := overlapping(claims)
	slices.SortFunc(contested, order)
	var lost []conflict
	var kept []*claim // sorted by where they begin; no two overlap
	for _, c := range contested {
		at, _ := slices.BinarySearchFunc(kept, c, byBegin)
		// A range that contains c begins before c, and every range between the two would overlap it.
		switch {
		case at < len(kept) && c.Overlaps(kept[at].Prefix):
			lost = append(lost, conflict{c, kept[at]})
		case at > 0 && c.Overlaps(kept[at-1].Prefix):
			lost = append(lost, conflict{c, kept[at-1]})
		default:
			kept = slices.Insert(kept, at, c)
		}
	}
	return lost
}

func byBegin(a, b *claim) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// overlapping returns the claims that overlap another.
func overlapping(claims []*claim) []*claim {
	sorted := slices.Clone(claims)
	slices.SortFunc(sorted, byBegin)
	found := map[*claim]bool{}
	var around []*claim // the ranges that contain the present one, the widest first
	for _, c := range sorted {
		for len(around) > 0 && !around[len(around)-1].Contains(c.Addr()) {
			around = around[:len(around)-1]
		}
		if len(around) > 0 { // the wider ones are in found already
			found[around[len(around)-1]], found[c] = true, true
		}
		around = append(around, c)
	}
	return slices.DeleteFunc(sorted, func(c *claim) bool { return !found[c] })
}

// message describes the conflict to the author of the losing claim.
func (c conflict) message() string {
	owner := c.to.node.Name
	switch {
	case c.lost.node == c.to.node && c.lost.pods:
		return c.lost.String() + " overlaps " + c.to.String() + ", another range of the node: a node has one podCIDR per family, remove it"
	case c.lost.node == c.to.node:
		return c.lost.String() + " lies in the node's own pod range " + c.to.String() + ": a node's address must lie outside of the cluster's ranges, and it is left out"
	case !c.lost.pods && !c.to.pods:
		return c.lost.String() + " is an address of Node " + owner + ", which had it first, and is left out here: give every node its own. If both are one machine, delete the Node that is no more"
	case !c.lost.pods:
		return c.lost.String() + " lies in the pod range " + c.to.String() + " of Node " + owner + ", and is left out: a node's address must lie outside of the cluster's ranges"
	case !c.to.pods:
		return c.lost.String() + " has the address " + c.to.String() + " of Node " + owner + " in it, and is left out: give the node a range in which no node lies"
	}
	return c.lost.String() + " overlaps " + c.to.String() + " of Node " + owner + ", which had it first, and is left out: give every node a range of its own"
}

// keyID returns the bytes of a public key, so that two spellings of one key are equal. It returns a text that is not
// base64 as it is.
func keyID(text string) string {
	if raw, err := base64.StdEncoding.DecodeString(text); err == nil {
		return string(raw)
	}
	return text
}

// owners returns, for each node that loses its key, the node that keeps it. keys holds the nodes' keys by index, ""
// for none.
func owners(nodes []*corev1.Node, keys []string, p *precedence) map[*corev1.Node]*corev1.Node {
	first := map[string]int{}
	lost := map[*corev1.Node]*corev1.Node{}
	holds := func(i int) bool { return p.hasKey(nodes[i], keys[i]) }
	for i, key := range keys {
		if key == "" {
			continue
		}
		id := keyID(key)
		if k, taken := first[id]; !taken || p.nodes(nodes[i], nodes[k], holds(i), holds(k)) < 0 {
			first[id] = i
		}
	}
	for i, key := range keys {
		if k, taken := first[keyID(key)]; key != "" && taken && k != i {
			lost[nodes[i]] = nodes[k]
		}
	}
	return lost
}

// pin is what is believed of a Node.
type pin struct {
	UID types.UID `json:"uid"`
	Key string    `json:"key"`
	// Claims are its addresses and pod ranges, separated by spaces.
	Claims string `json:"claims,omitempty"`
}

func (p pin) has(c *claim) bool {
	return slices.Contains(strings.Fields(p.Claims), c.String())
}

func refusal(n *corev1.Node, field, message string) kube.Problem {
	return kube.Problem{Severity: kube.Error, Object: kube.RefOf(n), Field: field, Message: message}
}
