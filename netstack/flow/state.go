package flow

import "tapestry.dev/tapestry/netstack/packet"

// State is how far a flow has come.
type State uint8

// The states of a flow.
const (
	free        State = iota
	SynSent           // TCP: no answer yet; SCTP has the same states
	SynReceived       // TCP: answered, handshake not complete
	Established       // TCP
	FinOriginal       // TCP, half closed by the side that opened it; SCTP, shut down by it
	FinReply          // TCP, half closed by the other side
	TimeWait          // TCP, closed by both
	Reset             // TCP, RST seen; SCTP, ABORT seen
	Unreplied         // UDP: no answer yet
	Replied           // UDP: answered
	Answered          // UDP to port 53, answer seen
	Echo              // ICMP
	Other             // any other protocol

	// Closed is never stored: Lookup reports it for a SYN that belongs to an ended flow. The caller deletes that flow
	// (its Orig is the packet's tuple, or Hit.To.Reverse() when Dir is Reply) and treats the packet as the first of a
	// new flow.
	Closed
	// Refused is never stored: Lookup reports it, for a flow whose state becomes Reset, for the reset by which a
	// Backend refuses a TCP connection.
	Refused
	// Accepted is never stored: Lookup reports it, for a flow whose state becomes SynReceived, for the segment by which
	// a Backend takes a TCP connection.
	Accepted
	// Abandoned is never stored: Lookup reports it, for a flow whose state becomes Reset, for the reset by which a
	// Backend gives up a TCP connection that it has accepted, when it has said and acknowledged nothing since.
	Abandoned
)

var stateNames = [...]string{"free", "SYN_SENT", "SYN_RECEIVED", "ESTABLISHED", "FIN_ORIGINAL", "FIN_REPLY", "TIME_WAIT",
	"RESET", "UNREPLIED", "REPLIED", "ANSWERED", "ECHO", "OTHER", "CLOSED", "REFUSED", "ACCEPTED", "ABANDONED"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "invalid"
}

// timeouts lists how many seconds a flow may be idle in each state. The values are those of nf_conntrack
// (Documentation/networking/nf_conntrack-sysctl.rst) with kube-proxy's time for established connections. They are
// shorter for ended flows, and 10 s for an answered DNS query. A reset that counts may have been in vain all the same
// (see revived): a connection that was established survives it if an end says something within two minutes. An ended
// flow keeps its reply tuple for longer than the backend's own TIME_WAIT (TCP_TIMEWAIT_LEN, 60 s). So a client that
// reaches the same backend through another Service with the same port gets another reply tuple meanwhile, and does not
// meet a silent socket that still waits.
var timeouts = [Closed + 1]uint32{
	SynSent: 60, SynReceived: 60, Established: 86400, FinOriginal: 3600, FinReply: 3600, TimeWait: 62, Reset: 120,
	Unreplied: 30, Replied: 120, Answered: 10, Echo: 30, Other: 600,
}

// pressed lists how many seconds a flow may be idle when the table is nearly full.
var pressed = [Closed + 1]uint32{
	SynSent: 10, SynReceived: 10, Established: 7200, FinOriginal: 300, FinReply: 300, TimeWait: 5, Reset: 1,
	Unreplied: 5, Replied: 60, Answered: 2, Echo: 5, Other: 60,
}

// cheap ranks the states by how readily a flow is given up when one of its owner's flows has to go; the highest goes
// first.
var cheap = [Closed + 1]uint8{
	Established: 0, FinOriginal: 1, FinReply: 1, Replied: 2, Other: 2, SynSent: 3, Unreplied: 3, Echo: 3, SynReceived: 4,
	TimeWait: 5, Answered: 6, Reset: 7,
}

// refusedFor is how many seconds a flow may be idle that was reset before it was established. Such flows are many, and
// there is nothing to keep. They are stored as if they had been idle for the rest of timeouts[Reset] already.
const refusedFor = 10

// seenIn returns the time to store as last seen for a packet at now that changed a flow's state from was to is.
func seenIn(now uint32, was, is State) uint32 {
	if is == Reset && was < Established {
		return now - (timeouts[Reset] - refusedFor)
	}
	return now
}

// idle returns the time since seen in seconds. now may be one tick older than seen, since another reader may have
// refreshed the entry by a newer clock.
func idle(now, seen uint32) uint32 {
	if d := int32(now - seen); d > 0 {
		return uint32(d)
	}
	return 0
}

// expired reports whether a flow's time is over.
func expired(now, seen uint32, s State) bool { return idle(now, seen) > timeouts[s] }

// first returns the state of a new flow.
func first(proto packet.Proto, tcpFlags uint8) State {
	switch proto {
	case packet.TCP, packet.SCTP:
		return nextTCP(SynSent, Original, tcpFlags)
	case packet.UDP:
		return Unreplied
	case packet.ICMPv4, packet.ICMPv6:
		return Echo
	}
	return Other
}

// next returns the state after one more packet. It ignores windows and sequence numbers, by which only resets are
// judged before (marks.obeyed): a table that judges packets invalid lets them bypass translation, and connections
// break. An SCTP flow that an earlier agent began is in the states of UDP, and stays in them.
func next(s State, d Dir, tp *packet.Tuple, tcpFlags uint8) State {
	switch {
	case s < Unreplied && (tp.Proto == packet.TCP || tp.Proto == packet.SCTP):
		return nextTCP(s, d, tcpFlags)
	case s == Unreplied && d == Reply:
		if tp.Proto == packet.UDP && tp.SrcPort == 53 {
			return Answered
		}
		return Replied
	}
	return s
}

// settled reports whether the packet leaves its flow in its state and opens no connection, as nearly all packets do. It
// agrees with next, and is cheaper.
func settled(s State, tcpFlags uint8) bool {
	return s == Established && tcpFlags&(packet.SYN|packet.FIN|packet.RST) == 0 || s > Unreplied
}

func nextTCP(s State, d Dir, flags uint8) State {
	switch {
	case flags&packet.RST != 0:
		return Reset
	case s == Reset:
		return revived(d, flags)
	case s == TimeWait:
		return s
	case flags&packet.FIN != 0:
		return fin(s, d)
	case s >= Established:
		return s
	case flags&packet.SYN != 0:
		if d == Reply {
			return SynReceived
		}
		return s
	case d == Reply || s == SynReceived:
		return Established
	}
	return s
}

// revived returns the state of a flow after one more packet following a reset. The receiver of a reset that is outside
// its window drops the reset, and the connection goes on (RFC 9293 3.10.7.4, RFC 5961 3.2). The connection is known to
// live when both ends still send: first the end that opened it, then the other. A closed end answers with another
// reset; after one end is gone, packets still under way come from the other end only.
func revived(d Dir, flags uint8) State {
	if d == Original && flags&packet.SYN == 0 {
		return SynSent
	}
	return Reset
}

func fin(s State, d Dir) State {
	mine, other := FinOriginal, FinReply
	if d == Reply {
		mine, other = other, mine
	}
	if s == other {
		return TimeWait
	}
	return mine
}
