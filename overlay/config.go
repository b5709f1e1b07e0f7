package overlay

import "net/netip"

// Config is the whole desired state of the Mesh: who the other nodes are. Set may be called with it again and again.
type Config struct {
	Peers []Peer
}

// Peer is one other node.
type Peer struct {
	// ID is the identity the rest of the node knows the peer by, stable over restarts.
	ID   uint64
	Name string
	// PublicKey is the peer's WireGuard key. A peer without one (zero) is known but not reachable yet.
	PublicKey PublicKey
	// Endpoint is where its WireGuard listens. Invalid: wait until the peer speaks first.
	Endpoint netip.AddrPort
	// Prefixes are the addresses the peer may use inside the tunnel: its podCIDRs and node addresses.
	Prefixes []netip.Prefix
	// StackAddrs are the peer's stack addresses (first of its podCIDRs), at most one per family.
	StackAddrs []netip.Addr
	// Tapestry is set for a node that runs this agent, false for a stock WireGuard peer.
	Tapestry bool
	// TakesPartial is set for a node that announced that it takes partial checksums (packet.Coalescer.Partial).
	TakesPartial bool
}

// PublicKey is a Curve25519 public key. Its text form is base64, as wg(8) prints it.
type PublicKey [32]byte
