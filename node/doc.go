// Package node assembles the network of one node out of the mesh, the packet path, Services and the edges. These
// packages do not know one another. Only what joins them stands here.
//
// # Theory of operation
//
// The parts of a node are one list (parts.go), in the order in which they are made and set. Close goes through it
// backwards, after Drain, in which what ends with the Node may finish while everything else goes on. Each part says how
// it is set, which problems it has and what it counts.
//
//	Held, Config ──Start──> Node (all parts, none of them in force)
//	                          │ AttachTAP: what was attached before this process
//	              Config ──Set──> in force; again with every snapshot of the cluster
//
// Start makes all parts, or none and an error. A started Node does nothing before the first Set: it reads no
// attachment, listens on no socket and knows no other node. TAPs that an earlier process left are attached between
// Start and Set, because from Set on the Node refuses packets to pod addresses that no attachment has.
//
// Set takes the whole desired state. Each part applies what concerns it. A part that fails keeps its former state, and
// the other parts go on. The pod ranges cannot change during the life of a Node, because the stack and the tunnel have
// addresses in them.
//
// # Who sees whom
//
// reach.go alone decides how a connection from a host socket reaches an endpoint, and which client address the endpoint
// sees (docs/architecture.md, decision 6). tail.go decides which endpoints must not be connected to, because an
// EndpointSlice would lead the connection back to where it came from.
//
// The package is slightly larger than 1,500 lines because each part is set and closed from the one state of the node.
package node
