package netstack

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// owner is who is charged for what a packet takes of things that all senders share. It is a number that no sender
// chooses, and the same after a restart.
func (s *snapshot) owner(j *journey) uint64 {
	switch {
	case j.from != nil:
		return j.from.owner
	case j.sender != nil:
		return j.sender.ID
	}
	if r, own := s.hosts[j.orig.Src]; own && r.kind != toPeer {
		return flow.OwnerNode
	}
	return flow.OwnerOutside
}

// ownerOf is who is charged for what a sender's address takes: a pod by its first address and another node, however
// many addresses it has, by one of its own. Others are charged themselves.
func (p *Path) ownerOf(a packet.Addr) packet.Addr {
	if att := p.attachments.table.Load().byAddr[a]; att != nil {
		return att.addrs[0]
	}
	if s := p.snapshot.Load(); s != nil {
		if r := s.route(&a); r.kind == toPeer {
			return r.peer.owner
		}
	}
	return a
}

// Owner is who is charged for what somebody takes who is known by an address of the cluster: the same for all
// addresses of a pod of this node, and for all of another node.
func (p *Path) Owner(a netip.Addr) netip.Addr {
	owner := p.ownerOf(packet.AddrFrom(a))
	return owner.Netip()
}

// ownerAt is the owner that a pod is, by its first address.
func ownerAt(a packet.Addr) uint64 {
	t := packet.Tuple{Src: a}
	return t.Hash(0)
}

// FlowOwner says who began a flow, by its entry alone: for flows of agents that did not note it. A client by way of
// this node's stack is taken for one from outside, and a pod's second address for another owner.
func FlowOwner(e *flow.Entry) uint64 {
	switch e.Via {
	case viaRoute:
		return ownerAt(e.Orig.Src)
	case viaStack:
		return flow.OwnerOutside
	}
	return e.Via
}
