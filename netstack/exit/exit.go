// Package exit says by which way what pods send to the outside leaves the cluster.
package exit

import (
	"net/netip"
	"slices"
	"strings"

	"tapestry.dev/tapestry/netstack/packet"
)

// Config is what a Table is made of.
type Config struct {
	// Routed lists ranges outside of the cluster to which pods' packets are routed as they are, from the pods' own
	// addresses: they leave by the host TAP, and the network outside knows the way back to the pods.
	Routed []netip.Prefix
	// Pods says which pods of this node have egress addresses. These pods do not go by Routed.
	Pods Pods
	// Gateways are the nodes by which egress addresses leave. An address of Pods that it does not have is Unsettled.
	Gateways map[netip.Addr]Gateway
}

// Pods says from which addresses pods leave.
type Pods struct {
	// Addresses are all egress addresses of the cluster, whether pods of this node have them or not.
	Addresses []netip.Addr
	// Addrs are the egress addresses of pods, by the names of their attachments: one of each family at most. What a pod
	// that is named sends in a family without an address is refused, and so is all it sends if it has none.
	Addrs map[string][]netip.Addr
	// Held are namespaces of which a pod that neither Addrs nor Free names is refused the outside: it may be one that
	// has an egress address. Free are the pods of these namespaces that have none.
	Held []string
	Free map[string]bool
}

// Gateway is the node by which an egress address leaves. The zero Gateway is none.
type Gateway struct {
	Here bool   // it is this node
	Peer uint64 // ID of another node
}

// Way is how a packet leaves.
type Way uint8

// The ways.
const (
	Sockets   Way = iota // over host sockets: the node's address is seen
	HostTAP              // routed by the host
	ToPeer               // by another node, encapsulated
	Nowhere              // it does not, and the sender is told
	Unsettled            // nobody has said yet: known flows go on as they went, and new ones wait
)

// Exit is a Way with what belongs to it.
type Exit struct {
	Way  Way
	Src  packet.Addr // the source outside; the zero Addr: the sender's own
	Peer uint64      // with ToPeer
}

// Pod is what a Table says of a pod.
type Pod struct {
	exits [2]Exit // to IPv6, to IPv4
}

// Table is a compiled Config. It is immutable.
type Table struct {
	config  Config
	lengths []int // distinct lengths of the ranges in bits of 128, longest first
	routed  map[netip.Prefix]struct{}
	pods    map[string]*Pod
	egress  map[packet.Addr]Exit // by egress address
}

// refused is the Pod of which everything is.
var refused = &Pod{[2]Exit{{Way: Nowhere}, {Way: Nowhere}}}

// New compiles a Config; nil when everything leaves over host sockets. The caller must not change c afterwards.
func New(c Config) *Table {
	if len(c.Routed)+len(c.Pods.Addrs)+len(c.Pods.Held)+len(c.Pods.Addresses) == 0 {
		return nil
	}
	t := &Table{
		config: c, routed: make(map[netip.Prefix]struct{}, len(c.Routed)),
		pods: make(map[string]*Pod, len(c.Pods.Addrs)), egress: make(map[packet.Addr]Exit, len(c.Pods.Addresses)),
	}
	for _, p := range c.Routed {
		p = mapped(p)
		t.routed[p] = struct{}{}
		if !slices.Contains(t.lengths, p.Bits()) {
			t.lengths = append(t.lengths, p.Bits())
		}
	}
	slices.Sort(t.lengths)
	slices.Reverse(t.lengths)
	for _, a := range c.Pods.Addresses {
		g, settled := c.Gateways[a]
		t.egress[packet.AddrFrom(a)] = exitBy(packet.AddrFrom(a), g, settled)
	}
	for name, addrs := range c.Pods.Addrs {
		pod := *refused
		for _, a := range addrs {
			pod.exits[family(a.Is4())] = t.From(packet.AddrFrom(a))
		}
		t.pods[name] = &pod
	}
	return t
}

func exitBy(src packet.Addr, g Gateway, settled bool) Exit {
	switch {
	case !settled:
		return Exit{Way: Unsettled, Src: src}
	case g.Here:
		return Exit{Way: HostTAP, Src: src}
	case g.Peer != 0:
		return Exit{Way: ToPeer, Src: src, Peer: g.Peer}
	}
	return Exit{Way: Nowhere}
}

func family(is4 bool) int {
	if is4 {
		return 1
	}
	return 0
}

// Pod returns what there is to know of the pod with an attachment of that name; nil when it has no egress address. It
// may be called on a nil Table.
func (t *Table) Pod(name string) *Pod {
	if t == nil {
		return nil
	}
	if p := t.pods[name]; p != nil {
		return p
	}
	if ns, _, _ := strings.Cut(name, "/"); slices.Contains(t.config.Pods.Held, ns) && !t.config.Pods.Free[name] {
		return refused
	}
	return nil
}

// Of returns how packets of a pod to dst, which is outside, leave; pod is what Pod has returned. It allocates nothing,
// and may be called on a nil Table.
func (t *Table) Of(pod *Pod, dst packet.Addr) Exit {
	switch {
	case pod != nil:
		return pod.exits[family(dst.Is4())]
	case t.routes(dst):
		return Exit{Way: HostTAP}
	}
	return Exit{}
}

// From returns how packets from src leave: Nowhere when that is no egress address. It may be called on a nil Table.
func (t *Table) From(src packet.Addr) Exit {
	if t != nil {
		if e, known := t.egress[src]; known {
			return e
		}
	}
	return Exit{Way: Nowhere}
}

// Has reports whether a is an egress address. It may be called on a nil Table.
func (t *Table) Has(a packet.Addr) bool {
	if t == nil {
		return false
	}
	_, known := t.egress[a]
	return known
}

// routes reports whether dst lies in a range to which pods' packets are routed as they are.
func (t *Table) routes(dst packet.Addr) bool {
	if t == nil {
		return false
	}
	a := netip.AddrFrom16(dst)
	for _, n := range t.lengths {
		if n < packet.Before4 && dst.Is4() {
			break // ::/0 is all of IPv6, and nothing of IPv4
		}
		p, _ := a.Prefix(n) // cannot fail: n is within 0..128
		if _, ok := t.routed[p]; ok {
			return true
		}
	}
	return false
}

// mapped converts a prefix to the 128-bit form of packet.Addr.
func mapped(p netip.Prefix) netip.Prefix {
	p = p.Masked()
	if p.Addr().Is4() {
		return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), p.Bits()+packet.Before4)
	}
	return p
}

// Moved returns the egress addresses that have a gateway, which is not the one that they had by the table before. Both
// tables may be nil.
func (t *Table) Moved(before *Table) (list []packet.Addr) {
	if t == nil {
		return nil
	}
	for a, e := range t.egress {
		if (e.Way == HostTAP || e.Way == ToPeer) && e != before.From(a) {
			list = append(list, a)
		}
	}
	return list
}
