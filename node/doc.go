// Package node is the network of one node, assembled: the mesh, the packet path, Services and the edges, none of which
// knows the others. What joins them stands here, and nothing else does.
//
// # Theory of operation
//
// The parts of a node are one list (parts.go), in the order in which they are made and set. Close goes through it
// backwards. Each part says how it is set, which problems it has and what it counts.
//
//	Held, Config ──Start──> Node (all parts, none of them in force)
//	                          │ AttachTAP: what was attached before this process
//	              Config ──Set──> in force; again with every snapshot of the cluster
//
// Start makes every part or none. A started Node holds still: nothing is read from an attachment, nobody is listened to
// and no other node is known before the first Set. Attachments that were there before the process are attached in
// between, since a packet to an address that is nobody's is refused.
//
// Set takes the whole state. Each part takes what concerns it; one that fails keeps what it had, and the others go on.
// The pod ranges are a Node's for life: the stack and the tunnel have their addresses in them.
//
// # Who sees whom
//
// Where a connection from a host socket goes, and as whom, is decided by reach.go alone (docs/architecture.md,
// decision 6). Where none may go, since an EndpointSlice leads it back to where it came from, tail.go says.
package node
