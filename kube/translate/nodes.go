package translate

import (
	"cmp"
	"encoding/base64"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/overlay"
)

// node is what the data plane needs of a corev1.Node.
type node struct {
	ref          kube.Ref
	name         string
	topologyZone string
	podCIDRs     []netip.Prefix // at most one per family
	addrs        []netip.Addr   // internal addresses, primary first
	key          overlay.PublicKey
	endpoint     netip.AddrPort
	stock        bool
	partial      bool // accepts partial checksums
	unready      bool
	leaving      bool
	made         time.Time
	// cidrFields and addrFields are the fields of podCIDRs and addrs, by the same index.
	cidrFields, addrFields []string
}

// nodeStage turns Nodes into what the packet path and the mesh have to know of them.
type nodeStage struct {
	parsed  memo[*corev1.Node, *node]
	settled memo[list[*node], *nodes]
}

// nodes is the result of all Nodes together.
type nodes struct {
	// self is this node. When there is no such Node, only its name is set.
	self     node
	netstack netstack.Config // without the parts that come from Services
	// services are the service ranges of Options.Ranges.
	services []netip.Prefix
	overlay  overlay.Config
	// addrs are the addresses on which nodes answer, sorted; names are the names of their nodes, by the same index.
	addrs []netip.Addr
	names []string
	// portless are those of addrs that have no node ports.
	portless []netip.Addr
}

func (s *nodeStage) of(objs []*corev1.Node, o Options, say *kube.Report) *nodes {
	parsed := s.parsed.each(objs, compareNames, nil, say, parseNode)
	return s.settled.once(identity(parsed), say, func(say *kube.Report) *nodes {
		named := usableRanges(parsed, o, say)
		return joinNodes(settleNodes(parsed, named.Pods, say), named, o, say)
	})
}

// parseNode reads a Node by itself. podCIDRs and addrs are what the Node asks for, whoever else does.
func parseNode(obj *corev1.Node, say *kube.Report) *node {
	n := &node{ref: kube.RefOf(obj), name: obj.Name, topologyZone: obj.Labels[corev1.LabelTopologyZone], made: obj.CreationTimestamp.Time}
	n.stock = obj.Annotations[kube.StockAnnotation] == "true" || obj.Labels[kube.ExternalLabel] == "true"
	n.partial = !n.stock && hasFeature(obj, kube.PartialChecksums)
	n.unready = slices.ContainsFunc(obj.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue
	})
	n.leaving = obj.DeletionTimestamp != nil ||
		slices.ContainsFunc(obj.Spec.Taints, func(x corev1.Taint) bool { return x.Key == kube.ToBeDeletedTaint })
	n.parsePodCIDRs(obj, say)
	n.parseAddrs(obj, say)
	n.key = publicKey(obj, say)
	n.endpoint = endpointOf(obj, say)
	return n
}

// hasFeature reports whether a node's agent announced a feature. Unknown names may come from a newer agent, and are
// ignored.
func hasFeature(obj *corev1.Node, feature string) bool {
	for name := range strings.SplitSeq(obj.Annotations[kube.FeaturesAnnotation], ",") {
		if strings.TrimSpace(name) == feature {
			return true
		}
	}
	return false
}

func (n *node) parsePodCIDRs(obj *corev1.Node, say *kube.Report) {
	for i, text := range kube.PodCIDRs(obj) {
		field := index("spec.podCIDRs", i)
		p, err := netip.ParsePrefix(text)
		if err != nil {
			say.Errorf(n.ref, field, "%q is not a prefix: expected one like 10.244.1.0/24", text)
			continue
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked()
		if most := maxBits(p.Addr()); !p.IsValid() || p.Bits() > most && !n.stock {
			say.Errorf(n.ref, field, "%q has no room for pods: the node keeps the first addresses, use a prefix of at most %d bits", text, most)
			continue
		}
		if slices.ContainsFunc(n.podCIDRs, func(q netip.Prefix) bool { return q.Addr().Is4() == p.Addr().Is4() }) {
			say.Errorf(n.ref, field, "%s is a second prefix of its family: a node has one podCIDR per family, remove it", p)
			continue
		}
		n.podCIDRs, n.cidrFields = append(n.podCIDRs, p), append(n.cidrFields, field)
	}
}

// maxBits returns the longest podCIDR with room for a pod. The network's address, the stack's and the host TAP's are
// taken, and in IPv4 the broadcast address too.
func maxBits(a netip.Addr) int {
	if a.Is4() {
		return 29
	}
	return 126
}

func (n *node) parseAddrs(obj *corev1.Node, say *kube.Report) {
	for i, a := range obj.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		field := index("status.addresses", i) + ".address"
		addr, err := netip.ParseAddr(a.Address)
		if err != nil {
			say.Errorf(n.ref, field, "%q is no address other nodes could use: expected one like 192.168.1.10", a.Address)
			continue
		}
		if what := addressing.Special(addr); what != "" {
			say.Errorf(n.ref, field, "%s is %s, which no other node could use: expected one like 192.168.1.10", addr, what)
			continue
		}
		if addr = addr.Unmap(); !slices.Contains(n.addrs, addr) {
			n.addrs, n.addrFields = append(n.addrs, addr), append(n.addrFields, field)
		}
	}
}

func publicKey(obj *corev1.Node, say *kube.Report) overlay.PublicKey {
	text := obj.Annotations[kube.PublicKeyAnnotation]
	if text == "" {
		return overlay.PublicKey{}
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != len(overlay.PublicKey{}) {
		say.Errorf(kube.RefOf(obj), annotation(kube.PublicKeyAnnotation), "%q is not a WireGuard public key: expected 32 bytes in base64, as wg pubkey prints them", text)
		return overlay.PublicKey{}
	}
	return overlay.PublicKey(raw)
}

// endpointOf returns where the Node says that its WireGuard listens; invalid when it does not say so.
func endpointOf(obj *corev1.Node, say *kube.Report) netip.AddrPort {
	text := obj.Annotations[kube.EndpointAnnotation]
	if text == "" {
		return netip.AddrPort{}
	}
	ap, err := netip.ParseAddrPort(text)
	if err == nil && ap.Port() != 0 && addressing.Special(ap.Addr()) == "" {
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	say.Errorf(kube.RefOf(obj), annotation(kube.EndpointAnnotation), "%q is not where other nodes could reach it: expected address:port, like 192.168.1.10:51820", text)
	return netip.AddrPort{}
}

// defaultEndpoint returns where the WireGuard of a Node listens that does not say so; invalid when it has no address.
func (n *node) defaultEndpoint() netip.AddrPort {
	if len(n.addrs) == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(n.addrs[0], WireGuardPort)
}

// settleNodes decides between nodes that ask for the same thing: the oldest node keeps it, of equally old nodes the
// first by name. Where there is an API server, package cluster has decided already, because it remembers who had it
// before. No node keeps an address in pods, the ranges that Options name.
func settleNodes(parsed []*node, pods []netip.Prefix, say *kube.Report) []node {
	var taken ranges
	addrs, keys := map[netip.Addr]string{}, map[overlay.PublicKey]string{}
	out := make([]node, 0, len(parsed))
	order := slices.Clone(parsed) // this keeps the order by name for equal ages
	slices.SortStableFunc(order, func(a, b *node) int { return a.made.Compare(b.made) })
	for _, asks := range order {
		n := *asks
		n.podCIDRs, n.addrs = nil, nil
		for i, p := range asks.podCIDRs {
			if owner, other := taken.overlapping(p); owner != "" {
				say.Errorf(n.ref, asks.cidrFields[i], "%s overlaps %s of Node %s: give every node a range of its own", p, other, owner)
				continue
			}
			taken.add(p, n.name)
			n.podCIDRs = append(n.podCIDRs, p)
		}
		for i, a := range asks.addrs {
			if addressing.Contains(pods, a) {
				say.Errorf(n.ref, asks.addrFields[i], "%s lies in a range of pods (--cluster-cidr), and is left out: a node's address must lie outside of the cluster's ranges", a)
				continue
			}
			if owner, known := addrs[a]; known {
				say.Errorf(n.ref, asks.addrFields[i], "%s is an address of Node %s already: give every node its own", a, owner)
				continue
			}
			addrs[a] = n.name
			n.addrs = append(n.addrs, a)
		}
		if owner, known := keys[n.key]; known && n.key != (overlay.PublicKey{}) {
			say.Errorf(n.ref, annotation(kube.PublicKeyAnnotation), "is the key of Node %s already: every node needs a key of its own", owner)
			n.key = overlay.PublicKey{}
		}
		keys[n.key] = n.name
		if !n.endpoint.IsValid() {
			n.endpoint = n.defaultEndpoint()
		}
		if len(n.podCIDRs) == 0 && !n.stock {
			say.Warnf(n.ref, "spec.podCIDRs", "the node has no range for its pods, so that none can run there: add one like 10.244.1.0/24")
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b node) int { return cmp.Compare(a.name, b.name) })
	return out
}

// ranges holds prefixes, sorted, no two of which overlap.
type ranges []ownedRange

type ownedRange struct {
	netip.Prefix
	owner string // the name of a node
}

// place returns the index at which p is, or would be inserted.
func (r ranges) place(p netip.Prefix) int {
	i, _ := slices.BinarySearchFunc(r, p, func(x ownedRange, p netip.Prefix) int { return x.Addr().Compare(p.Addr()) })
	return i
}

func (r *ranges) add(p netip.Prefix, owner string) {
	*r = slices.Insert(*r, r.place(p), ownedRange{p, owner})
}

// overlapping returns a prefix that overlaps p, and its owner. When several overlap, it returns that of the owner
// with the least name.
func (r ranges) overlapping(p netip.Prefix) (owner string, other netip.Prefix) {
	// A prefix that contains p begins before p, and every prefix between the two would overlap it.
	for _, x := range r[max(r.place(p)-1, 0):] {
		switch {
		case x.Overlaps(p):
			if owner == "" || x.owner < owner {
				owner, other = x.owner, x.Prefix
			}
		case x.Addr().Compare(p.Addr()) > 0:
			return owner, other // this and all later prefixes begin behind the end of p
		}
	}
	return owner, other
}
