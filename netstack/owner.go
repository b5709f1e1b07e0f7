package netstack

import "tapestry.dev/tapestry/netstack/packet"

// The owners that are no pod and no peer. Those are hashes, and practically never this small.
const (
	ownerNode    uint64 = 1 // this node: its processes and its gateway
	ownerOutside uint64 = 2 // clients outside of the cluster, who come by this node's sockets
)

// owner is who is charged for what a packet takes of things that all senders share. It is a number that no sender chooses, and the same
// after a restart.
func (s *snapshot) owner(j *journey) uint64 {
	switch {
	case j.from != nil:
		return j.from.owner
	case j.sender != nil:
		return j.sender.ID
	}
	if r, own := s.hosts[j.orig.Src]; own && r.kind != toPeer {
		return ownerNode
	}
	return ownerOutside
}

// ownerAt is the owner that a pod is, by its first address.
func ownerAt(a packet.Addr) uint64 {
	t := packet.Tuple{Src: a}
	return t.Hash(0)
}
