// Package tcprelay joins TCP connections of pods with connections of the host's kernel, without a TCP stack in between.
//
// # Theory of operation
//
// A conn stands between a pod, with which it exchanges segments, and a host socket, which has a byte stream:
//
//	pod ─segments─ TAP ─ pipeline ─ conn ─stream─ host socket ─ outside
//
// A conn begins in one of two ways. When a pod sends a SYN to the outside (Deliver), the Relay makes a host socket with
// the TTL and DSCP of that SYN and connects it. It answers the pod only when the connect has ended. So a refused
// connection is refused to the pod as well, and an unreachable network or host becomes an ICMP error to the pod. After
// a time-out the pod gets no answer, and may repeat its SYN as long as it likes. When a client of the host was accepted
// on a NodePort (Adopt, Join), the Relay sends a SYN to the pod.
//
// Bytes from a pod are written to the socket straight from its frames, several superframes of one turn of the poller at
// once (Turn), and then acknowledged. What the socket does not accept is kept and not acknowledged, and the pod may
// send less by that size. Bytes from the socket are read to memory with room for headers before them, one superframe or
// several at once. They are sent from there and kept until the pod acknowledges them, in memory or, with a Hold, in the
// socket. So the two system calls copy a byte, and nothing else does.
//
// There is no network between a pod and its node: a write to a TAP hands the frame to the pod's kernel before it
// returns. Frames are not reordered and hardly ever lost. So there is no congestion window, no SACK and no estimate of
// round-trip times, only the pod's own window, a retransmission timer and the third duplicate acknowledgement. The rate
// at which a pod is sent data may be limited. A conn then asks before each superframe (Options.Pace), and leaves the
// rest in the socket while it waits. What the conn sends is therefore never delayed by the limit again.
//
// # Pods of other nodes
//
// A client of a NodePort may be joined to a pod of another node, behind a tunnel over a network that loses. Such a conn
// (far) has a congestion window, measures round trips, and repairs what is missing (mend), as package recovery decides.
// It always peeks, so that everything that may have to be repeated is in the socket. What a far pod sends behind a hole
// is acknowledged selectively. Frames of far pods come by goroutines of the tunnel, which must not wait until there is
// room on the way out: what they cause is done by other goroutines (pumpLater).
//
// # Who may do what
//
// The two directions share as little as possible, because a pod's frames and a socket's readiness come to different
// goroutines. conn.mu guards the state of the pod's stream (receive.go). The state of the socket's stream (send.go)
// belongs to the goroutine that pumps (conn.pump). Only one goroutine pumps a conn at a time; others leave it a note
// and go on. The two directions share a few atomics: what the pod has acknowledged, and what we acknowledge and send. A
// conn ends only in the goroutine that pumps, with mu held, and its descriptor is closed there, or by whoever has just
// had it held.
//
// A sender of a segment first publishes our next sequence number and then loads the number to acknowledge. So of two
// goroutines that send at the same time, at least one sends the newest value of both.
//
// # Who lives
//
// A pod's keep-alive probe is meant for the far end. The host's kernel is made to send a probe of its own, and the pod
// is answered when the far end has answered (package alive). So a far end that is gone is noticed at the pace of the
// pod's probes. Probes of the far end are answered by the host's kernel and are not visible here. Instead, a pod that
// has sent nothing for half a minute is probed, and the connection is aborted when the pod does not answer for two
// minutes.
//
// # Who is behind a socket
//
// A server of the host itself sees an address of the host as the client of a pod's connection. The Relay knows which
// pod it is (Behind) before the pod is told that the connection is open. So a server that has read something of a
// client knows who says it. Until then the server may see a connection of which nobody is known.
//
// # How it ends
//
// The end of a stream is passed on as an end, and a reset as a reset, even a reset after the end. A far end that
// accepts no more data may have sent some before. The pod gets this data first, as it makes room for it, and then the
// reset. Until then nothing that the pod sends is acknowledged. A pod without room is probed for ever, as long as it
// answers.
//
// # Another process goes on
//
// With a Hold, connections outlive the Relay and its process, whatever instant that is killed at. Somebody else has a
// duplicate of each host socket. Where both streams are follows from their initial numbers and from what the kernel
// counts for the socket (resume), if two rules are kept: nothing is acknowledged to the pod before the socket has
// accepted it, and nothing is consumed from the socket before the pod has acknowledged it. So the socket is peeked at,
// and what the pod has acknowledged is consumed later, many bytes at once. What was sent is not kept here (repeat).
// Shared memory has what the kernel does not know, one slot for each connection (record). It is written to when a
// connection opens, at the end of either stream, and when bytes are consumed, not for each segment.
//
// The pod's SYN is answered, or the pod is sent our SYN, when the socket is held. The next Relay takes over all
// connections (Resume), and then, when it hears pods, asks each how far it is (GoOn), not all at once, as their answers
// have to fit into the pods' queues, and soon again. Until the pod tells, it is sent nothing else. Then the stream
// continues behind what it has acknowledged, which may be more than the next Relay has sent (skip). What a pod of this
// node has sent meanwhile lies in its TAP; what a far pod has is lost, and it is told to send that again now (hurry).
//
// # Who may have how much
//
// Each connection is charged to the one who began it: a pod, or a client's network. So is the memory for data that its
// receiver does not accept (bounds). Nobody gets more connections or memory than is left to all others. When there is
// no memory, the socket is not read. From the pod then only as much is accepted as the socket accepts: the window
// closes, and the pod retransmits what was on its way.
//
// # Not here
//
// There is no TIME_WAIT: the stack answers a late segment of an ended connection with a reset. Urgent data is treated
// as ordinary data in its place (RFC 6093 6). Data in a SYN is ignored, so TCP Fast Open falls back to a normal
// handshake.
//
// The package has more than 1,500 lines because the two directions of a connection share a lock, a few atomics and the
// way they end, and what the next Relay is left takes part in each step of both.
package tcprelay
