// Package keeper holds descriptors while agents come and go.
//
// A TAP cannot be opened again without the pod's namespace and CAP_SYS_ADMIN, and flow memory is gone with its last
// descriptor. So a process that never restarts (a supervisor, or a tiny one of its own) keeps a duplicate of each, and
// hands them to the next agent. An agent dials, claims the lease, which exactly one agent has at a time and which
// the kernel ends with the agent's connection, lists what is there, and from then on puts every new descriptor before
// it tells anybody that it has it. The lease is what makes the agent the only writer of the flow memory.
//
// The protocol is package fdpass's: JSON in SOCK_SEQPACKET, one request and one answer at a time. A list is asked for
// in pages of at most 128 descriptors, each after the last was taken, as the kernel limits how many a user may have
// under way. Each client has a goroutine; a slow or broken one delays nobody.
package keeper
