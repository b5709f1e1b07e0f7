package netstack

import (
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
