package flowlog

import (
	"time"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// Record is one event of a flow. It has no pointers and no identities but addresses: who had an address at that time is
// found out when the record is read. Fields that say nothing of an event are 0.
type Record struct {
	// Time is since the Log was made; Log.At has it as a date. Write fills it in if it is 0.
	Time time.Duration
	// Rule is the rule by which the Policy permitted or refused the flow, as netstack.Ruling.Rule; 0 for none.
	Rule uint64
	// Backend is the stable identity of the chosen backend, 0 for none.
	Backend uint64
	// Peer is the ID of the node through whose host socket or host TAP a client outside came in; 0 for none.
	Peer uint64
	// Duration is how long the flow lasted. That of a flow of the flow table is in whole seconds.
	Duration time.Duration
	// Bytes of IP and Packets are by flow.Dir. Relays count the bytes of their streams, and no packets.
	Bytes, Packets [2]uint64
	// Src and Dst are the ends as the first packet named them, ToSrc and ToDst after translation. For an ICMP echo both
	// ports are the identifier.
	Src, Dst, ToSrc, ToDst packet.Endpoint
	// Wait is the time from the first packet to its first answer, in microseconds: SYN to SYN-ACK, question to answer;
	// 0 where it was not seen.
	Wait uint32
	// Retransmits is how many segments were seen again, or sent again by a relay.
	Retransmits uint32
	// Code is the RCODE of a DNS answer (RFC 1035 4.1.1), or the status of an HTTP one.
	Code uint16
	// Question is the type of a DNS question (RFC 1035 3.2.2).
	Question uint16
	// Answers is how many resource records the answer section of a DNS answer has.
	Answers uint16
	// Event says what happened, and so which other fields mean something.
	Event Event
	Proto packet.Proto
	// Reason is why a flow was refused or a packet dropped, a netstack.DropReason.
	Reason uint8
	// State is the last state of a flow that ended: how it ended.
	State flow.State
	// From and Toward say who was at the ends Src and ToDst.
	From, Toward End
	Flags        Flags
	// NameLen is the length of a name in bytes. One of more than MaxName is cut off there.
	NameLen uint8
	_       [2]byte
	// Name is the name that a DNS question asks for, or method and path of an HTTP request, as SetName has written it.
	Name [MaxName]byte
}

// MaxName is the length in bytes of the longest name that a Record holds whole.
const MaxName = 72

// Event is what happened to a flow.
type Event uint8

// The events.
const (
	Begun    Event = 1 + iota // the flow was permitted, and its first packet went on
	Ended                     // it was closed or reset, its time was over, or it made room for others
	Refused                   // it may not be, or not go on; its sender was told
	Dropped                   // it may not be, or not go on, or a packet was lost; its sender was not told
	Resolved                  // cluster DNS answered a question
	Served                    // Ingress answered a request
)

var eventNames = [...]string{"", "begun", "ended", "refused", "dropped", "resolved", "served"}

func (e Event) String() string {
	if int(e) < len(eventNames) {
		return eventNames[e]
	}
	return "invalid"
}

// End says who is at an end of a flow, as this node sees it.
type End uint8

// The ends.
const (
	Unknown   End = iota
	Pod           // a pod of this node
	Host          // this node's own processes
	Agent         // this node's stack: Ingress, DNS
	OtherNode     // a pod or process of another node
	Outside       // beyond the cluster
	Nobody        // an address of the cluster that nobody has
)

var endNames = [...]string{"", "pod", "host", "agent", "other-node", "outside", "nobody"}

func (e End) String() string {
	if int(e) < len(endNames) {
		return endNames[e]
	}
	return "invalid"
}

// Flags are further facts about an event.
type Flags uint8

// The flags.
const (
	// Relayed: the flow is a relay's, between a host socket and a pod. Such a flow may be in the flow table as well.
	Relayed Flags = 1 << iota
	// Audited: a staged policy would have refused the flow.
	Audited
	// Earlier: the flow began before this agent did.
	Earlier
)

// Translated reports whether the flow's packets change their addresses or ports.
func (r *Record) Translated() bool { return r.Src != r.ToSrc || r.Dst != r.ToDst }

// SetName puts a name into the record. It is the caller's again afterwards.
func (r *Record) SetName(name string) {
	copy(r.Name[:], name)
	r.NameLen = uint8(min(len(name), 255))
}

// NameText returns the name, with an ellipsis if it was too long.
func (r *Record) NameText() string {
	if r.NameLen > MaxName {
		return string(r.Name[:]) + "…"
	}
	return string(r.Name[:r.NameLen])
}
