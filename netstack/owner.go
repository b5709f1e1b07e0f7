package netstack

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// owner returns who is charged for what a packet takes of resources that all senders share. The number is not chosen by
// the sender, and is the same after a restart.
func (s *snapshot) owner(j *journey) uint64 {
	switch {
	case j.routed:
		return flow.OwnerOutside
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

// ownerOf returns who is charged for what the sender with address a takes: a pod as its first address, another node as
// one of its own addresses, however many it has, and anybody else as a.
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

// Owner returns who is charged for what is done at the address a. The result is the same for all addresses of a pod of
// this node, and for all addresses of another node.
func (p *Path) Owner(a netip.Addr) netip.Addr {
	owner := p.ownerOf(packet.AddrFrom(a))
	return owner.Netip()
}

// ownerAt returns the number by which a pod with the first address a is charged.
func ownerAt(a packet.Addr) uint64 {
	t := packet.Tuple{Src: a}
	return t.Hash(0)
}

// FlowOwner returns the owner of a flow from its entry alone, for flows of agents that did not record it. It takes a
// process of this node that sent through the stack for a client from outside, and the second address of a pod for
// another owner.
func FlowOwner(e *flow.Entry) uint64 {
	switch e.Via {
	case viaRoute:
		return ownerAt(e.Orig.Src)
	case viaStack, viaHost:
		return flow.OwnerOutside
	}
	return e.Via
}
