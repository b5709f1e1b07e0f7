// Package udprelay carries UDP conversations between pods and the outside over host sockets.
//
// # Theory of operation
//
// A conversation is what a pod sends from one port to one address and port outside, and what comes back. It has a connected host
// socket of its own, so that the kernel sorts what arrives, hears ICMP errors for it and keeps its port.
//
//	pod ─TAP─ pipeline ─ Relay.Send ── sendmsg ──▶ socket ─▶ outside
//	pod ◀TAP─ pipeline ◀ Options.Send ◀ Ready ◀─── recvmmsg
//
// To the outside, a datagram is sent by the goroutine that read it, straight out of the frame. A superframe (USO) stays one for the
// kernel, too (UDP_SEGMENT); where a route or device refuses that, its segments are sent one by one.
//
// From the outside, a poll.Poller tells of readiness. One call brings several datagrams, or several that the kernel coalesced
// (UDP_GRO), each to where its headers fit before it. Equal ones that follow one another become one superframe: the pipeline pays
// once for all, and cuts it for pods that cannot take one. A datagram larger than the pods' MTU becomes
// fragments.
//
// The pod's Don't Fragment is the socket's: what does not fit the path is told to the pod with the MTU that does, as a router
// would (RFC 1191, RFC 8201). What a destination refuses (ICMP port unreachable) is told, too.
//
// # Finding and ending conversations
//
// The table is a hash table of fixed size with chains. Readers take no lock and may stand on a conversation that is just removed: it
// still leads to the rest of its chain, and it cannot be used any more, as its count of users is zero. The last user closes the
// descriptor, so that nobody sends through a number that is another socket's already.
//
// Conversations end when they were idle for Options.Idle, found by Sweep, and the one idle for longest ends when there is no room for
// another. Both look at a heap ordered by when each conversation was last used as far as the heap knows: a packet only writes
// the time, and the heap learns of it when it looks. Times come from Sweep, so the order is as fine as its calls are frequent.
//
// # Locking
//
// Relay.mu guards the heap and changes of the table, and is held for no system call. Nothing is locked for a packet of a known
// conversation.
package udprelay
