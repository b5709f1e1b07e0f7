// Package udprelay carries UDP conversations between pods and the outside over host sockets.
//
// # Theory of operation
//
// A conversation is what a pod sends from one port to one address and port outside, and what comes back. All
// conversations of one address and port of a pod share one host socket, their mapping. So everybody outside sees the
// pod at one port (RFC 4787 REQ-1, endpoint-independent mapping), as STUN and protocols built upon it need. Only an
// address and port that the pod has sent to may send to the pod (RFC 4787 5). Datagrams from others are dropped and
// counted. On a host with several addresses the kernel chooses the source address by the route to each destination; the
// port is the same.
//
//	pod ─TAP─ pipeline ─ Relay.Send ── sendmsg ──▶ socket ─▶ outside
//	pod ◀TAP─ pipeline ◀ Options.Send ◀ Ready ◀─── recvmmsg
//
// Towards the outside, the goroutine that reads a datagram sends it, straight out of the frame. A superframe (USO) is
// passed to the kernel as one (UDP_SEGMENT). Where a route or device refuses it, its segments are sent one by one.
//
// From the outside, a poll.Poller reports that a socket is readable. What comes is read many datagrams at a time, and
// sent to the pod in superframes (package superframe).
//
// The socket's Don't Fragment flag follows the pod's. If a datagram does not fit the path, the pod is told the MTU that
// does, as by a router (RFC 1191, RFC 8201). TTL and traffic class are passed on in both directions (package dgram).
// ICMP errors about a destination are read from the socket's error queue (IP_RECVERR), which names the destination and
// the sender of the error. The pod gets an error from that sender when the destination refuses, when the destination or
// its network is unreachable, or when the TTL ran out.
//
// # Finding and ending conversations
//
// The table is a hash table of fixed size with chains. Readers take no lock. A reader may stand on a conversation that
// has just been removed, which still leads to the rest of its chain. A mapping that has ended cannot be used any more,
// because its count of users is zero. The last user closes the descriptor, so nobody sends through a number that
// belongs to another socket already.
//
// A conversation ends after it has been idle for Options.Idle. Sweep finds it in a heap ordered by the last use of each
// conversation, as far as the heap knows it: a packet only writes the time, and the heap reads it when it looks. The
// clock advances only in Sweep, so the order is as fine as the calls of Sweep are frequent. A mapping ends with its
// last conversation.
//
// Sockets and conversations are divided among pods by the rule of package share. A pod that talks to everybody, or from
// all its ports, loses its own conversations, the longest idle one first, and costs other pods nothing.
//
// # Another process goes on
//
// With a Hold, mappings outlive the Relay and its process. A mapping that has lived until the next Sweep gets a slot in
// shared memory, which says whose it is, and somebody else a duplicate of its socket. So do its conversations, each
// with a slot of its own. The next Relay makes the same mappings and conversations again (Resume). Datagrams that come
// meanwhile wait in the sockets.
//
// # Locking
//
// Relay.mu guards the heap, the mappings and changes of the table, and is never held over a system call. A packet of a
// known conversation takes no lock, except that of the bounds once between two Sweeps.
package udprelay
