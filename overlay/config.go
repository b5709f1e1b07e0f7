package overlay

import (
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/overlay/candidates"
)

// Config is the whole desired state of the Mesh: who the other nodes are. Set may be called with it again and again.
type Config struct {
	Peers []Peer
}

// Peer is one other node.
type Peer struct {
	// ID identifies the peer in the rest of the node. It is the same after restarts.
	ID   uint64
	Name string
	// PublicKey is the peer's WireGuard key. A peer without one (zero) is known but not reachable yet.
	PublicKey PublicKey
	// Endpoint is where the peer's WireGuard listens. Invalid: the Mesh waits until the peer speaks first.
	Endpoint netip.AddrPort
	// Others are further addresses where the peer's WireGuard listens, in order of preference after Endpoint; see
	// package candidates. They count for Tapestry peers alone, since others answer no probes.
	Others []netip.AddrPort
	// Prefixes are the addresses the peer may use inside the tunnel: its podCIDRs and node addresses.
	Prefixes []netip.Prefix
	// StackAddrs are the peer's stack addresses (the first of each of its podCIDRs), at most one per family.
	StackAddrs []netip.Addr
	// Tapestry is true for a node that runs this agent, and false for a stock WireGuard peer.
	Tapestry bool
	// TakesPartial is true for a node that announced that it accepts partial checksums (packet.Coalescer.Partial).
	TakesPartial bool
	// Watched has the Mesh ask the peer several times a second whether it can take over addresses; see Beats.
	Watched bool
}

// PublicKey is a Curve25519 public key. Its text form is base64, as wg(8) prints it.
type PublicKey [32]byte

// addrs returns where the peer's WireGuard listens, in order of preference, each address once.
func (p *Peer) addrs() (list []netip.AddrPort) {
	all := []netip.AddrPort{p.Endpoint}
	if p.Tapestry {
		all = append(all, p.Others...)
	}
	for _, a := range all {
		if a = unmapped(a); a.IsValid() && !slices.Contains(list, a) && len(list) < candidates.Most {
			list = append(list, a)
		}
	}
	return list
}

// unmapped returns a without the form of an IPv4 address in IPv6.
func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
