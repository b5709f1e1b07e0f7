// Package udprelay carries UDP conversations between pods and the outside over host sockets.
//
// # Theory of operation
//
// A conversation is what a pod sends from one port to one address and port outside, and what comes back. All
// conversations of one address and port of a pod have one host socket, their mapping: so everybody outside sees one
// port (RFC 4787 REQ-1, endpoint-independent mapping), as STUN and what builds upon it need. Only those whom the pod
// has sent to may send to it from outside, each from the address and port that was sent to (RFC 4787 5): what comes
// from others is dropped and counted. On a host with several addresses the kernel takes the one that the route to each
// destination has; the port is the same.
//
//	pod ─TAP─ pipeline ─ Relay.Send ── sendmsg ──▶ socket ─▶ outside
//	pod ◀TAP─ pipeline ◀ Options.Send ◀ Ready ◀─── recvmmsg
//
// To the outside, a datagram is sent by the goroutine that read it, straight out of the frame. A superframe (USO) stays
// one for the kernel, too (UDP_SEGMENT); where a route or device refuses that, its segments are sent one by one.
//
// From the outside, a poll.Poller tells of readiness. One call brings several datagrams, or several that the kernel
// coalesced (UDP_GRO), each to where its headers fit before it. Equal ones that follow one another become one
// superframe: the pipeline pays once for all, and cuts it for pods that cannot take one. A datagram larger than the
// pods' MTU becomes fragments.
//
// The pod's Don't Fragment is the socket's: what does not fit the path is told to the pod with the MTU that does, as a
// router would (RFC 1191, RFC 8201). TTL and traffic class are passed on in both directions (package dgram). What ICMP
// errors say of a destination is heard from the socket's queue of errors (IP_RECVERR), which names the destination, and
// is told to the pod in the name of who says it: that it refuses, that it or its network is not reached, that the TTL
// ran out.
//
// # Finding and ending conversations
//
// The table is a hash table of fixed size with chains. Readers take no lock and may stand on a conversation that is
// just removed: it still leads to the rest of its chain. A mapping that has ended cannot be used any more, as its count
// of users is zero. The last user closes the descriptor, so that nobody sends through a number that is another socket's
// already.
//
// Conversations end when they were idle for Options.Idle, found by Sweep in a heap that is ordered by when each
// conversation was last used as far as the heap knows: a packet only writes the time, and the heap learns of it when it
// looks. Times come from Sweep, so the order is as fine as its calls are frequent. A mapping ends with its last
// conversation.
//
// Sockets and conversations are shared out among pods by the rule of package share: a pod that talks to everybody, or
// from all its ports, loses its own, the one idle for longest first, and costs the others nothing.
//
// # Locking
//
// Relay.mu guards the heap, the mappings and changes of the table, and is held for no system call. For a packet of a
// known conversation nothing is locked, but the bounds once between two Sweeps.
package udprelay
