package translate

import (
	"cmp"
	"encoding/base64"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/overlay"
)

// node is a corev1.Node as far as the data plane cares.
type node struct {
	ref      kube.Ref
	name     string
	zone     string
	podCIDRs []netip.Prefix // at most one per family
	addrs    []netip.Addr   // internal addresses, primary first
	key      overlay.PublicKey
	endpoint netip.AddrPort
	stock    bool
	partial  bool // takes partial checksums
	unready  bool
}

// nodes parses all nodes, in the order of their names. Where two claim the same thing the first keeps it, so that all
// agents agree.
func (t *translator) nodes() []node {
	return t.memo.nodes.of(t, t.objs.Nodes, t.nodeList)
}

func (t *translator) nodeList() []node {
	var list []node
	claims := nodeClaims{cidrs: map[netip.Prefix]string{}, addrs: map[netip.Addr]string{}, keys: map[overlay.PublicKey]string{}}
	for _, obj := range t.objs.Nodes {
		n := node{ref: kube.RefOf(obj), name: obj.Name, zone: t.zones[obj.Name]}
		n.stock = obj.Annotations[kube.StockAnnotation] == "true" || obj.Labels[kube.ExternalLabel] == "true"
		n.partial = !n.stock && hasFeature(obj, kube.PartialChecksums)
		n.unready = slices.ContainsFunc(obj.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue
		})
		n.podCIDRs = t.podCIDRs(obj, n.ref, n.stock, claims)
		n.addrs = t.nodeAddrs(obj, n.ref, claims)
		n.key = t.publicKey(obj, n.ref, claims)
		n.endpoint = t.endpoint(obj, n.ref, n.addrs)
		if len(n.podCIDRs) == 0 && !n.stock {
			t.warnf(n.ref, "spec.podCIDRs", "the node has no range for its pods, so that none can run there: add one like 10.244.1.0/24")
		}
		list = append(list, n)
	}
	return list
}

// hasFeature reports whether a node's agent announced that it can do something. Unknown names are a newer agent's.
func hasFeature(obj *corev1.Node, feature string) bool {
	for name := range strings.SplitSeq(obj.Annotations[kube.FeaturesAnnotation], ",") {
		if strings.TrimSpace(name) == feature {
			return true
		}
	}
	return false
}

// nodeClaims remembers which node has what.
type nodeClaims struct {
	cidrs map[netip.Prefix]string
	addrs map[netip.Addr]string
	keys  map[overlay.PublicKey]string
}

func (t *translator) podCIDRs(obj *corev1.Node, ref kube.Ref, stock bool, claims nodeClaims) []netip.Prefix {
	texts := obj.Spec.PodCIDRs
	if len(texts) == 0 && obj.Spec.PodCIDR != "" {
		texts = []string{obj.Spec.PodCIDR}
	}
	var list []netip.Prefix
	for i, text := range texts {
		field := index("spec.podCIDRs", i)
		p, err := netip.ParsePrefix(text)
		if err != nil {
			t.errorf(ref, field, "%q is not a prefix: expected one like 10.244.1.0/24", text)
			continue
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked()
		if most := maxBits(p.Addr()); !p.IsValid() || p.Bits() > most && !stock {
			t.errorf(ref, field, "%q has no room for pods: the node keeps the first addresses, use a prefix of at most %d bits", text, most)
			continue
		}
		if slices.ContainsFunc(list, func(q netip.Prefix) bool { return q.Addr().Is4() == p.Addr().Is4() }) {
			t.errorf(ref, field, "%s is a second prefix of its family: a node has one podCIDR per family, remove it", p)
			continue
		}
		if owner, other := overlapping(claims.cidrs, p); owner != "" {
			t.errorf(ref, field, "%s overlaps %s of Node %s: give every node a range of its own", p, other, owner)
			continue
		}
		claims.cidrs[p] = obj.Name
		list = append(list, p)
	}
	return list
}

// maxBits is the longest podCIDR with room for a pod: beside the network's address, the gateway's and the host Port's, in IPv4
// also the broadcast address is taken.
func maxBits(a netip.Addr) int {
	if a.Is4() {
		return 29
	}
	return 126
}

func overlapping(cidrs map[netip.Prefix]string, p netip.Prefix) (owner string, other netip.Prefix) {
	for q, name := range cidrs {
		if q.Overlaps(p) && (owner == "" || name < owner) {
			owner, other = name, q
		}
	}
	return owner, other
}

func (t *translator) nodeAddrs(obj *corev1.Node, ref kube.Ref, claims nodeClaims) []netip.Addr {
	var list []netip.Addr
	for i, a := range obj.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		field := index("status.addresses", i) + ".address"
		addr, err := netip.ParseAddr(a.Address)
		if err != nil || addr.Zone() != "" || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
			t.errorf(ref, field, "%q is no address other nodes could use: expected one like 192.168.1.10", a.Address)
			continue
		}
		addr = addr.Unmap()
		if owner, ok := claims.addrs[addr]; ok {
			if owner != obj.Name {
				t.errorf(ref, field, "%s is an address of Node %s already: give every node its own", addr, owner)
			}
			continue
		}
		claims.addrs[addr] = obj.Name
		list = append(list, addr)
	}
	return list
}

func (t *translator) publicKey(obj *corev1.Node, ref kube.Ref, claims nodeClaims) overlay.PublicKey {
	text, ok := obj.Annotations[kube.PublicKeyAnnotation]
	if !ok || text == "" {
		return overlay.PublicKey{}
	}
	field := annotation(kube.PublicKeyAnnotation)
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != len(overlay.PublicKey{}) {
		t.errorf(ref, field, "%q is not a WireGuard public key: expected 32 bytes in base64, as wg pubkey prints them", text)
		return overlay.PublicKey{}
	}
	key := overlay.PublicKey(raw)
	if owner, taken := claims.keys[key]; taken {
		t.errorf(ref, field, "is the key of Node %s already: every node needs a key of its own", owner)
		return overlay.PublicKey{}
	}
	claims.keys[key] = obj.Name
	return key
}

func (t *translator) endpoint(obj *corev1.Node, ref kube.Ref, addrs []netip.Addr) netip.AddrPort {
	if text := obj.Annotations[kube.EndpointAnnotation]; text != "" {
		ap, err := netip.ParseAddrPort(text)
		if err == nil && ap.Port() != 0 && !ap.Addr().IsUnspecified() {
			return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		}
		t.errorf(ref, annotation(kube.EndpointAnnotation), "%q is not an endpoint: expected address:port, like 192.168.1.10:51820", text)
	}
	if len(addrs) == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addrs[0], WireGuardPort)
}

// toBeDeletedTaint is put on a node that the cluster autoscaler is about to take away; kube-proxy looks at the same (KEP-3836).
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

func (t *translator) leaving() bool {
	for _, obj := range t.objs.Nodes {
		if obj.Name == t.options.Node {
			return obj.DeletionTimestamp != nil ||
				slices.ContainsFunc(obj.Spec.Taints, func(x corev1.Taint) bool { return x.Key == toBeDeletedTaint })
		}
	}
	return false
}

// peers fills in what the packet path and the mesh need to know of the nodes.
func (t *translator) peers(nodes []node, r *Result) {
	r.Netstack.Node = t.options.Node
	r.Netstack.MTU = t.mtu(nodes)
	found := false
	for i := range nodes {
		n := &nodes[i]
		r.Netstack.ClusterCIDRs = append(r.Netstack.ClusterCIDRs, n.podCIDRs...)
		if n.name == t.options.Node {
			found = true
			r.Netstack.PodCIDRs, r.Netstack.NodeAddrs = n.podCIDRs, n.addrs
			continue
		}
		r.Netstack.Peers = append(r.Netstack.Peers, n.route())
		r.Overlay.Peers = append(r.Overlay.Peers, n.peer())
	}
	if !found {
		t.errorf(kube.Ref{Kind: "Node", Name: t.options.Node}, "", "there is no such Node, and this agent runs it: add the object or start the agent with another name")
	}
	slices.SortFunc(r.Netstack.ClusterCIDRs, comparePrefix)
}

// id is the number by which the other nodes know it.
func (n *node) id() uint64 { return addressing.Node{Name: n.name}.ID() }

func (n *node) route() netstack.PeerRoute {
	return netstack.PeerRoute{
		ID: n.id(), Name: n.name, PodCIDRs: n.podCIDRs, NodeAddrs: n.addrs, Encap: !n.stock, SendsPartial: !n.stock,
		Unready: n.unready,
	}
}

func (n *node) peer() overlay.Peer {
	p := overlay.Peer{
		ID: n.id(), Name: n.name, PublicKey: n.key, Endpoint: n.endpoint, Tapestry: !n.stock, TakesPartial: n.partial,
	}
	for _, cidr := range n.podCIDRs {
		p.Prefixes = append(p.Prefixes, cidr)
		if !n.stock {
			p.Gateway = append(p.Gateway, addressing.Gateway(cidr))
		}
	}
	for _, a := range n.addrs {
		p.Prefixes = append(p.Prefixes, netip.PrefixFrom(a, a.BitLen()))
	}
	return p
}

// mtu is the pods' MTU. It is the same on all nodes because it depends on nothing that differs between them.
func (t *translator) mtu(nodes []node) int {
	tunnel6, only6 := false, false
	for i := range nodes {
		n := &nodes[i]
		tunnel6 = tunnel6 || n.endpoint.IsValid() && n.endpoint.Addr().Is6()
		only6 = only6 || onlyIPv6(n.podCIDRs)
	}
	overhead := podOverhead(tunnel6, only6)
	mtu := t.options.UnderlayMTU - overhead
	if mtu < addressing.MinMTU {
		t.warnf(kube.Ref{Kind: "Node", Name: t.options.Node}, "", "an underlay MTU of %d leaves %d for pods, and IPv6 needs %d: raise the MTU of the network between the nodes to %d",
			t.options.UnderlayMTU, mtu, addressing.MinMTU, addressing.MinMTU+overhead)
	}
	return mtu
}

// PodMTU returns the MTU in bytes of pods on an underlay of that MTU (0 for addressing.DefaultUnderlayMTU), where all nodes
// have addresses and ranges like these. Without addresses they are taken to be of the ranges' families.
func PodMTU(underlay int, addrs []netip.Addr, podCIDRs []netip.Prefix) int {
	only6 := onlyIPv6(podCIDRs)
	tunnel6 := len(addrs) == 0 && only6 || len(addrs) > 0 && addrs[0].Is6()
	return cmp.Or(underlay, addressing.DefaultUnderlayMTU) - podOverhead(tunnel6, only6)
}

func onlyIPv6(podCIDRs []netip.Prefix) bool {
	return len(podCIDRs) > 0 && !slices.ContainsFunc(podCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() })
}

// podOverhead is what the pods' MTU leaves room for, in bytes: a tunnel over IPv6 takes more, and so does the encapsulation of
// clients where gateways have IPv6 addresses alone.
func podOverhead(tunnel6, only6 bool) int {
	return addressing.Tunnel(tunnel6) + addressing.Encap(only6)
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

func annotation(key string) string { return "metadata.annotations[" + key + "]" }
