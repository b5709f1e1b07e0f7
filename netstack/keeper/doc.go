// Package keeper holds descriptors while agents come and go.
//
// A TAP cannot be opened again without the pod's namespace and CAP_SYS_ADMIN, and flow memory is gone with its last
// descriptor. So a process that never restarts (a supervisor, or a small process of its own) keeps a duplicate of each
// descriptor and hands them to the next agent. An agent connects to it, claims the lease and lists what is there. From
// then on it puts every new descriptor before it tells anybody that it has it. Only one agent has the lease at a time,
// and the kernel ends the lease with the agent's connection. The lease makes the agent the only writer of the flow
// memory. The next agent may wait for it beside the one that has it (HoldNext).
//
// Sockets of connections that come and go by the thousand lie on shelves, under numbers (Shelf). What an agent puts
// there is held from the moment at which it was sent, without an answer.
//
// The protocol is that of package fdpass: JSON over SOCK_SEQPACKET, one request and one answer at a time. A list is
// read in pages of at most 128 descriptors, each after the one before was received, because the kernel limits how many
// descriptors a user may have in flight. Each client has a goroutine, so a slow or broken client delays nobody.
package keeper
