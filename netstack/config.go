package netstack

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// Config is everything a Node needs to know of the cluster to move packets. It is the whole desired state: Set
// compiles it into an immutable snapshot and swaps it in; flows survive.
type Config struct {
	// Node is this node's name.
	Node string
	// PodCIDRs are this node's pod prefixes, at most one per family. The first address of each is the gateway's, the
	// second the host Port's.
	PodCIDRs []netip.Prefix
	// NodeAddrs are this node's own addresses on the underlay, primary first.
	NodeAddrs []netip.Addr
	// ClusterCIDRs are all pod ranges and ServiceCIDRs all service ranges of the cluster: addresses that no outside
	// client may claim.
	ClusterCIDRs, ServiceCIDRs []netip.Prefix
	// LocalAddrs are further addresses that the gateway answers on this node, the cluster DNS address among them.
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
	// Encap is set when the peer is a Tapestry node, that is, takes IP-in-IP at its gateway address.
	Encap bool
	// SendsPartial is set when the peer may send partial checksums (packet.Coalescer.Partial): when it is a Tapestry node. Such
	// a one may have read that we take them before we read anything of it.
	SendsPartial bool
	// Unready is set while the cluster knows that the node does not answer: nothing is to be expected of it.
	Unready bool
}

// Balancer chooses backends; *services.Table is one. It must be safe for concurrent use and allocate nothing.
type Balancer interface {
	// Pick answers for the first packet of a flow. t is borrowed.
	Pick(t *packet.Tuple) packet.Choice
	// Backend says what became of a backend chosen earlier.
	Backend(id uint64) packet.BackendState
}

// Link is the way to other nodes; *overlay.Mesh is one.
type Link interface {
	// Send takes one packet (a superframe perhaps) to the peer that owns its destination address, or, with a non-zero
	// via, encapsulated to that peer's gateway. It may block while the link is busy. Send may exchange p.Buf for
	// another buffer of the same capacity, which the caller then owns; p.IP is invalid afterwards.
	// Packets that do not fit the peer's path must not be given to Send: see MTU.
	Send(p *packet.Packet, peer uint64, via *packet.Encap)
	// MTU is the largest IP packet in bytes that fits through the tunnel to the peer, before encapsulation.
	MTU(peer uint64) int
}
