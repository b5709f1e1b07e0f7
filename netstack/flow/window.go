package flow

import "tapestry.dev/tapestry/netstack/packet"

// A reset ends a connection only if its receiver obeys it: when its sequence number is within the window, and in
// SYN-SENT when it acknowledges the SYN (RFC 9293 3.10.7, RFC 5961 3.2). The table judges that by what the receiver
// said it had received. Windows are not read: the factor by which they are scaled is known only to whoever saw the
// SYNs.

// mark is where the stream of one direction stands: a sequence number in units of markUnit, or 0 when it is not known.
// It is the upper half of the sequence number with the lowest bit set.
type mark uint16

const (
	markUnit = 1 << 17
	// reach is how far beyond what was acknowledged a reset counts, in bytes; a random number is within it one time in
	// 127. No sender has more under way: the largest receive buffer of Linux is 32 MiB (net.ipv4.tcp_rmem).
	reach = 32 << 20
)

func markOf(seq uint32) mark { return mark(seq>>16) | 1 }

// admits reports whether seq is at the mark or within reach beyond it.
func (m mark) admits(seq uint32) bool { return markOf(seq)-m <= reach>>16 }

// marks holds the marks of both directions, by Dir. They are written in the same way as counters.
type marks [2]mark

// learn takes what a segment of direction d says: what its sender has received, and where a stream begins. A reset says
// nothing, since it may be forged.
//
//go:norace
func (m *marks) learn(d Dir, seg packet.Segment) {
	if seg.Flags&(packet.ACK|packet.RST) == packet.ACK {
		m[(d^1)&1] = markOf(seg.Ack)
	}
	if seg.Flags&(packet.SYN|packet.RST) == packet.SYN {
		m[d&1] = markOf(seg.Seq)
	}
}

//go:norace
func (m *marks) load() marks { return *m }

// obeyed reports whether the receiver of a reset of direction d obeys it, as far as is known. s is the flow's state.
func (m marks) obeyed(s State, d Dir, rst packet.Segment) bool {
	mine, other := m[d&1], m[(d^1)&1]
	answersSYN := rst.Flags&packet.ACK != 0 && other.admits(rst.Ack)
	switch {
	case mine == 0 && other != 0 && s == SynSent && d == Reply:
		return answersSYN // the receiver has acknowledged nothing yet
	case mine == 0:
		return true
	}
	// A SYN on a live flow, of an end that lost the connection, may be answered by a reset as well. Its sequence number
	// is 0 (RFC 9293 3.10.7.1).
	return mine.admits(rst.Seq) || rst.Seq == 0 && answersSYN
}
