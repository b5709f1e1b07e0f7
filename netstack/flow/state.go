package flow

import "tapestry.dev/tapestry/netstack/packet"

// State is how far a flow has come.
type State uint8

// The states of a flow.
const (
	free        State = iota
	SynSent           // TCP: nothing came back
	SynReceived       // TCP: answered, handshake not complete
	Established       // TCP
	FinOriginal       // TCP, half closed by the side that opened it
	FinReply          // TCP, half closed by the other side
	TimeWait          // TCP, closed by both
	Reset             // TCP, RST seen
	Unreplied         // UDP and SCTP: nothing came back
	Replied           // UDP and SCTP
	Answered          // UDP to port 53, answer seen
	Echo              // ICMP
	Other             // any other protocol

	// Closed is never stored: Lookup reports it for a SYN that hits an ended flow. The caller deletes that flow (its
	// Orig is the packet's tuple, or Hit.To.Reverse() when Dir is Reply) and treats the packet as the first one of a
	// new flow.
	Closed
)

var stateNames = [...]string{"free", "SYN_SENT", "SYN_RECEIVED", "ESTABLISHED", "FIN_ORIGINAL", "FIN_REPLY", "TIME_WAIT",
	"RESET", "UNREPLIED", "REPLIED", "ANSWERED", "ECHO", "OTHER", "CLOSED"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "invalid"
}

// timeouts are seconds a flow may idle in a state: those of nf_conntrack
// (Documentation/networking/nf_conntrack-sysctl.rst) with kube-proxy's established time, less patience after the end,
// and 10 s for an answered DNS query. An ended flow keeps its reply tuple for longer than the backend's own TIME_WAIT
// (TCP_TIMEWAIT_LEN, 60 s): a client that comes to the same backend by way of another Service with the same port gets
// another one then, and no silence from a socket that still waits.
var timeouts = [Closed + 1]uint32{
	SynSent: 60, SynReceived: 60, Established: 86400, FinOriginal: 3600, FinReply: 3600, TimeWait: 62, Reset: 10,
	Unreplied: 30, Replied: 120, Answered: 10, Echo: 30, Other: 600,
}

// pressed are the seconds that remain when the table is nearly full.
var pressed = [Closed + 1]uint32{
	SynSent: 10, SynReceived: 10, Established: 7200, FinOriginal: 300, FinReply: 300, TimeWait: 5, Reset: 1,
	Unreplied: 5, Replied: 60, Answered: 2, Echo: 5, Other: 60,
}

// cheap ranks the states in which a flow goes first when one of its owner's has to go, most willing last.
var cheap = [Closed + 1]uint8{
	Established: 0, FinOriginal: 1, FinReply: 1, Replied: 2, Other: 2, SynSent: 3, Unreplied: 3, Echo: 3, SynReceived: 4,
	TimeWait: 5, Answered: 6, Reset: 7,
}

// idle is the time since seen in seconds. A reader's clock may be one tick behind the one that refreshed the entry.
func idle(now, seen uint32) uint32 {
	if d := int32(now - seen); d > 0 {
		return uint32(d)
	}
	return 0
}

// expired tells whether a flow's time is over.
func expired(now, seen uint32, s State) bool { return idle(now, seen) > timeouts[s] }

// first gives the state of a new flow.
func first(proto packet.Proto, tcpFlags uint8) State {
	switch proto {
	case packet.TCP:
		return nextTCP(SynSent, Original, tcpFlags)
	case packet.UDP, packet.SCTP:
		return Unreplied
	case packet.ICMPv4, packet.ICMPv6:
		return Echo
	}
	return Other
}

// next gives the state after one more packet. Windows and sequence numbers are not looked at: a table that judges
// packets invalid lets them bypass translation, and connections break.
func next(s State, d Dir, tp *packet.Tuple, tcpFlags uint8) State {
	switch {
	case tp.Proto == packet.TCP:
		return nextTCP(s, d, tcpFlags)
	case s == Unreplied && d == Reply:
		if tp.Proto == packet.UDP && tp.SrcPort == 53 {
			return Answered
		}
		return Replied
	}
	return s
}

// settled tells the packets, nearly all, that leave their flow in its state. It is next's answer without asking it.
func settled(s State, tcpFlags uint8) bool {
	return s == Established && tcpFlags&(packet.FIN|packet.RST) == 0 || s > Unreplied
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

// revived gives the state of a flow after one more packet since a reset. The receiver of a reset that is outside of
// its window drops it, and the connection goes on (RFC 9293 3.10.7.4, RFC 5961 3.2). That shows when both ends still
// send: the one that opened it, and then the other. An end that is closed answers with another reset, and what was
// under way to an end that is gone comes from one end alone.
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

// pureSYN tells the first packet of a connection.
func pureSYN(flags uint8) bool {
	return flags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) == packet.SYN
}
