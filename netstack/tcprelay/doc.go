// Package tcprelay joins TCP connections of this node's pods with connections of the host's kernel, without a TCP stack
// in between.
//
// # Theory of operation
//
// A conn stands between a pod, which sends and gets segments, and a host socket, which has a stream:
//
//	pod ─segments─ TAP ─ pipeline ─ conn ─stream─ host socket ─ outside
//
// It begins in one of two ways. A pod's SYN for the outside (Deliver) makes a host socket, which connects; the pod is
// answered when that is done, so that what is refused to us is refused to the pod, an unreachable network or host is
// one to it (an ICMP error), and of a time-out it hears nothing and goes on asking as long as it likes. Or a client of
// the host's, accepted on a NodePort, is given to a pod (Join); then we send the SYN.
//
// What a pod says is written to the socket straight from its frames, several superframes of one turn of the poller
// together (Turn), and acknowledged; what the socket does not take is kept, and the window announced to the pod shrinks
// by it. What the socket has is read to behind the room for headers, a superframe or several at once, sent from there,
// and kept until the pod acknowledged it. So a byte is copied by the two system calls and by nothing else.
//
// Between a pod and its node there is no network: a write to a TAP hands the frame to the pod's kernel before it
// returns. Nothing is reordered and next to nothing lost, so there is no congestion window, no SACK and no estimate of
// round-trip times, only the pod's own window, a timer and the third duplicate acknowledgement. Pods of other nodes,
// behind a tunnel over a real network, are the business of the stack. What a pod is sent may be limited; then
// a conn asks before each superframe (Options.Pace), and waits, with the rest left in the socket. What it sends is
// never held back by the limit.
//
// # Who may do what
//
// The two directions meet as little as possible, since a pod's frames and a socket's readiness come to different
// goroutines. conn.mu guards what concerns the pod's stream (receive.go). What concerns the socket's stream (send.go)
// belongs to whoever pumps: one goroutine at a time, the others leave it a note and go on (conn.pump). They share a few
// atomics: what the pod acknowledged, what we do. A conn ends only in the hands of the one that pumps, with mu held,
// and only there is its descriptor closed.
//
// A segment carries the number that is to be acknowledged last, loaded after our own next number was published. So of
// two goroutines that send at the same time, one has both in their newest form.
//
// # Who lives
//
// A pod's keep-alive probe is for the far end: the host's kernel is made to send one of its own, and the pod is
// answered when the far end has (package alive). So a far end that is gone is found out by the pod's schedule. The
// other way round nothing is seen of the far end's probes, which the host's kernel answers: here a pod that says
// nothing for half a minute is asked, and given up when it does not answer for two.
//
// # How it ends
//
// The end of a stream is passed on as that, and a reset as a reset, also one that comes after the end. A far end that
// takes no more has perhaps said something before: that comes to the pod, as it makes room for it, and then the reset.
// Until then nothing of what the pod says is acknowledged. A pod that has no room is asked for ever, as long as it
// answers.
//
// # Who may have how much
//
// Each connection is charged to who began it, a pod or a client's network, and so is the memory of what its receiver
// does not take (bounds). Nobody gets more of either than is left to others. Without memory, the socket is not read,
// and of what the pod says no more is taken than the socket takes: its window is closed, and what was on its way is
// said again.
//
// # Not here
//
// No TIME_WAIT: a late segment of an ended connection is answered with a reset, by the stack. Urgent data is data, in
// its place (RFC 6093 6). A SYN's own data is not looked at, so Fast Open falls back.
//
// The package is longer than others: the two directions of a connection share a lock, a few atomics and their ends.
package tcprelay
