package netstack

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// Config is everything a Path needs to know of the cluster to move packets. It is the whole desired state: Set
// compiles it into an immutable snapshot and swaps it in; flows survive.
type Config struct {
	// Node is this node's name.
	Node string
	// PodCIDRs are this node's pod prefixes, at most one per family. The first address of each is the stack's, the
	// second the host TAP's.
	PodCIDRs []netip.Prefix
	// NodeAddrs are this node's own addresses on the underlay, primary first.
	NodeAddrs []netip.Addr
	// HostAddrs are all addresses of the host's interfaces, those in NodeAddrs among them. Pods reach the others through
	// the host TAP alone, since over a host socket they would come to them as a process of the host.
	HostAddrs []netip.Addr
	// DenyEgress is what pods may not dial over host sockets. Addresses of the cluster are not meant.
	DenyEgress []Destination
	// ClusterCIDRs are all pod ranges and ServiceCIDRs all service ranges of the cluster: addresses that no outside
	// client may claim.
	ClusterCIDRs, ServiceCIDRs []netip.Prefix
	// LocalAddrs are further addresses that the stack answers on this node, the cluster DNS address among them.
	LocalAddrs []netip.Addr
	// Peers are the other nodes.
	Peers []PeerRoute
	// MTU is the pods' MTU in bytes.
	MTU int
}

// PeerRoute says what lives behind one other node.
type PeerRoute struct {
	ID        uint64 // addressing.Node.ID of the peer
	Name      string
	PodCIDRs  []netip.Prefix
	NodeAddrs []netip.Addr
	// Encap is set when the peer is a Tapestry node, that is, takes IP-in-IP at its stack address.
	Encap bool
	// SendsPartial is set when the peer may send partial checksums (packet.Coalescer.Partial): when it is a Tapestry node.
	// Such a one may have read that we take them before we read anything of it.
	SendsPartial bool
	// Unready is set while the cluster knows that the node does not answer: nothing is to be expected of it.
	Unready bool
}

// Balancer chooses backends; *services.Table is one. It must be safe for concurrent use and allocate nothing. What it
// answers never changes, session affinity apart: a Table that changed is another one.
type Balancer interface {
	// Pick answers for the first packet of a flow. t is borrowed.
	Pick(t *packet.Tuple) packet.Choice
	// Backend says what became of a backend chosen earlier.
	Backend(id uint64) packet.BackendState
	// Leads reports whether t's destination is still one of the Service port for which a backend was chosen that serves
	// it at port, and not another's or nobody's by now. t is borrowed.
	Leads(t *packet.Tuple, backend uint64, port uint16) bool
	// IsEndpoint reports whether a Service has an endpoint there, ready or not. It need not know those of other nodes.
	IsEndpoint(to packet.Endpoint, proto packet.Proto) bool
}

// Policy says which flows may be. Like a Balancer it is compiled rules that do not change: rules that changed are
// another Policy.
type Policy interface {
	// Judge is asked when a flow begins, translated or not, and once more for each flow that has a packet after something
	// changed: this Policy, the Balancer or the Config. There is no scan; packets in between are not judged. Two packets
	// that begin one flow at the same time may both ask. It must be safe for concurrent use, allocate nothing and not
	// block. f is borrowed.
	Judge(f *Flow) Ruling
}

// Ruling is what a Policy says of a flow. The zero value permits it.
type Ruling struct {
	Action Action
	Rule   uint64 // which rule says so, for the Observer; 0 for none
}

// Action is what becomes of a flow.
type Action uint8

// The actions. A flow that is not permitted is counted as Denied, once per packet that tries.
const (
	Permit Action = iota
	Refuse        // the sender is told: a reset, or an ICMP error
	Drop          // the sender is not told
)

// Observer is told of flows, for records of them. It is called in the packet path by many goroutines at once, so it
// must be quick: never block, never allocate. What it is given is borrowed until it returns.
type Observer interface {
	// Begun tells of a flow that is new in the flow table, and of the rule by which the Policy permitted it.
	Begun(f *Flow, rule uint64)
	// Refused tells of a packet whose flow may not be, or not go on. why is the DropReason under which it is counted; rule
	// is the Policy's for Denied. It follows Begun for a flow to where nobody is, which is found out last.
	Refused(f *Flow, why DropReason, rule uint64)
	// Ended tells of a flow that left the flow table: it was over, made room, or may not go on. It may be one of an agent
	// before, and of a short one it may come before Begun.
	Ended(e flow.Entry, was flow.Info)
}

// Flow is a flow as a Policy judges it and an Observer hears of it.
type Flow struct {
	// Orig is the tuple of the first packet as it arrived. To is what it becomes; the same without translation, its space
	// always 0.
	Orig, To packet.Tuple
	// From has the address Orig.Src, and began the flow. Toward has the address To.Dst.
	From, Toward End
	// Backend is the one the Balancer chose, 0 for none.
	Backend uint64
}

// End is who is at an end of a flow, as this node sees it.
type End struct {
	Kind EndKind
	// Attachment is the name of that of a Pod, and of the Host where it has one.
	Attachment string
	// Peer is the OtherNode, or the one whose host socket a client Outside came in by. 0 for none.
	Peer uint64
}

// EndKind tells ends apart.
type EndKind uint8

// The kinds of ends.
const (
	Nobody    EndKind = iota // an address of the cluster that nobody has
	Pod                      // a pod of this node
	Host                     // this node's own processes
	Stack                    // this node's stack: Ingress, DNS
	OtherNode                // a pod or process of another node
	Outside                  // beyond the cluster
)

// Link is the way to other nodes; *overlay.Mesh is one.
type Link interface {
	// Send takes one packet (a superframe perhaps) to the peer that owns its destination address, or, with a non-zero
	// via, encapsulated to that peer's stack. It may block while the link is busy. Send may exchange p.Buf for
	// another buffer of the same capacity, which the caller then owns; p.IP is invalid afterwards.
	// Packets that do not fit the peer's path must not be given to Send: see MTU.
	Send(p *packet.Packet, peer uint64, via *packet.Encap)
	// MTU is the largest IP packet in bytes that fits through the tunnel to the peer, before encapsulation.
	MTU(peer uint64) int
}
