package netstack

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// Config is everything a Path needs to know of the cluster to move packets. It is the whole desired state: Set compiles
// it into an immutable snapshot and replaces the previous one. Flows survive.
type Config struct {
	// Node is this node's name.
	Node string
	// PodCIDRs lists this node's pod prefixes, at most one per family. The first address of each is the stack's, the
	// second the host TAP's.
	PodCIDRs []netip.Prefix
	// NodeAddrs lists this node's own addresses on the underlay, primary first.
	NodeAddrs []netip.Addr
	// HostAddrs lists all addresses of the host's interfaces, NodeAddrs included. Pods reach those that are not in
	// NodeAddrs through the host TAP only, since over a host socket their packets would arrive as those of a process of
	// the host.
	HostAddrs []netip.Addr
	// DenyEgress lists where pods may not dial over host sockets. It does not apply to addresses of the cluster.
	DenyEgress []Destination
	// ClusterCIDRs lists all pod ranges and ServiceCIDRs all service ranges of the cluster, also where no node or
	// Service has an address. No outside client may claim an address in them, and nothing in them is dialled over host
	// sockets.
	ClusterCIDRs, ServiceCIDRs []netip.Prefix
	// LocalAddrs lists further addresses at which the stack answers on this node, the cluster DNS address among them.
	LocalAddrs []netip.Addr
	// Peers lists the other nodes.
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
	// Encap is set when the peer accepts IP-in-IP at its stack address, that is, when it is a Tapestry node.
	Encap bool
	// SendsPartial is set when the peer may send partial checksums (packet.Coalescer.Partial), that is, when it is a
	// Tapestry node. Such a peer may have read this node's announcement before this node reads the peer's.
	SendsPartial bool
	// Unready is set while the cluster knows that the node does not answer.
	Unready bool
}

// Balancer chooses backends; *services.Table is one. It must be safe for concurrent use and allocate nothing. The
// answers of one Balancer never change, session affinity apart: a Table with other contents is another Balancer.
type Balancer interface {
	// Pick says what to do with the first packet of a flow, whose tuple is t. t is borrowed.
	Pick(t *packet.Tuple) packet.Choice
	// Backend says what became of a backend that was chosen earlier. at is its address.
	Backend(id uint64, at packet.Addr) packet.BackendState
	// Leads reports whether t's destination still belongs to the Service port for which backend was chosen, at which
	// backend serves on port. It returns false when the destination now belongs to another Service port or to none. For
	// a flow that was steered, the destination is the endpoint that leaves. t is borrowed.
	Leads(t *packet.Tuple, backend uint64, port uint16) bool
	// IsEndpoint reports whether to is an endpoint of a Service, ready or not. It need not know endpoints on other
	// nodes.
	IsEndpoint(to packet.Endpoint, proto packet.Proto) bool
	// Exposed reports whether a is an address of Services for clients outside of the cluster, and of nothing else: a
	// load balancer's, or one of spec.externalIPs.
	Exposed(a packet.Addr) bool
}

// Policy says which flows are permitted. Like a Balancer it is compiled and does not change: other rules are another
// Policy.
type Policy interface {
	// Judge is called when a flow begins, translated or not, and again at a flow's first packet after the Policy, the
	// Balancer or the Config changed. Packets in between are not judged, and there is no scan. A flow that it does not
	// permit any longer is judged at each packet until it expires. Two packets that begin one flow at the same time may
	// both be judged. A connection that begins without the packet that opens it is judged both ways. Judge must be safe
	// for concurrent use, allocate nothing and not block. f is borrowed.
	Judge(f *Flow) Ruling
}

// Ruling is what a Policy decides about a flow. The zero value permits it.
type Ruling struct {
	Action Action
	Rule   uint64 // the rule that decided, for the Observer; 0 for none
}

// Action is what becomes of a flow.
type Action uint8

// The actions. A flow that is not permitted is counted as Denied, once per packet that tries.
const (
	Permit Action = iota
	Refuse        // the sender is told: a reset, or an ICMP error
	Drop          // the sender is not told
)

// Observer is told of flows, so that it can record them. Many goroutines of the packet path call it at once, so it must
// be quick, never block and never allocate. Its arguments are borrowed until it returns.
type Observer interface {
	// Begun is called for a flow that is new in the flow table, which has it under ref, before its first packet goes
	// on. rule is the one by which the Policy permitted it.
	Begun(f *Flow, ref uint32, rule uint64)
	// Answered is called for a flow at its first answer, as flow.Table.OnAnswer has it. For a very short flow it may
	// come before Begun, as Ended may.
	Answered(ref uint32)
	// Refused is called for a packet whose flow may not be, or may not go on. It follows Begun for a flow to an address
	// that nobody has, since that is found out last.
	Refused(f *Flow, r Refusal)
	// Dropped is called for a packet that is dropped for another reason, and whose headers are whole. t is its tuple as
	// it arrived, and owner is who is charged for it.
	Dropped(t *packet.Tuple, why DropReason, owner uint64)
	// Ended is called for a flow that left the flow table: it was over, made room for others, or may not go on. A
	// previous agent may have begun the flow.
	Ended(e flow.Entry, was flow.Info)
}

// Refusal says how a packet fared whose flow may not be.
type Refusal struct {
	Why  DropReason // under which the packet is counted
	Told bool       // whether its sender was sent an answer
	Rule uint64     // the Policy's, for Denied
	// Owner is who is charged for the packet, as flow.Entry.Owner.
	Owner uint64
}

// Flow is a flow as a Policy judges it and an Observer hears of it.
type Flow struct {
	// Orig is the tuple of the first packet as it arrived. To is that tuple after translation; without translation the
	// two are equal, except that To.Space is always 0.
	Orig, To packet.Tuple
	// From is the end with the address Orig.Src, which began the flow. Toward is the end with the address To.Dst.
	From, Toward End
	// Backend is the backend that the Balancer chose, 0 for none.
	Backend uint64
	// Begins is set for the Policy when the flow begins: no packet of it has gone on yet.
	Begins bool
}

// End says who is at one end of a flow, as this node sees it.
type End struct {
	Kind EndKind
	// Attachment is the name of the attachment of a Pod, and of the Host if it has one.
	Attachment string
	// UID is the AttachmentConfig.UID of a Pod.
	UID string
	// Peer is the ID of an OtherNode, or, for a client Outside, of the node through whose host socket it came in. 0 for
	// none.
	Peer uint64
}

// EndKind is a kind of End.
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
	// Send sends one packet, which may be a superframe, to the peer that owns its destination address, or, with a
	// non-nil via, encapsulated to that peer's stack. It may block while the link is busy. Send may exchange p.Buf for
	// another buffer of the same capacity, which the caller then owns; p.IP is invalid afterwards. The caller must not
	// give Send packets that do not fit the peer's path: see MTU.
	Send(p *packet.Packet, peer uint64, via *packet.Encap)
	// MTU returns the length in bytes of the largest IP packet, before encapsulation, that fits through the tunnel to
	// the peer. IPv6 packets of up to addressing.MinMTU bytes are always carried, encapsulated ones as well: where they
	// do not fit, the Link cuts them by packet.Cutter, and the peer's Path joins what its Link then brings.
	MTU(peer uint64) int
}
