package netstack

import (
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// journey is one packet on its way through the steps: where it comes from, what the steps found out, and how it ends. A
// step reads what those before it wrote here, and nothing else. It lives on the stack of the goroutine that carries the
// packet.
type journey struct {
	packet *packet.Packet
	origin
	begun   bool // the packet began its flow
	verdict Verdict
	reason  DropReason
	answer  answer // Answered
	outside bool   // ToStack: on, over host sockets
	wrap    bool   // ToLink: encapsulated
	// quoted is the packet that an ICMP error speaks of; nil for any other packet.
	quoted *packet.Packet
	// orig is the packet's tuple as it was admitted, with its space: before translation.
	orig packet.Tuple
	mtu  int32 // ToLink, and tooBig: the largest IP packet in bytes that fits there
	// hit is the packet's flow, found or begun. Its To is what the packet becomes when Translate is set.
	hit flow.Hit
	// via says where the flow sends the packet when that is not where its destination address leads, as flow.Entry.Via.
	via  uint64
	rule uint64      // of the Policy's ruling, when it was asked
	to   *Attachment // ToPort
	peer *peer       // ToLink
}

// origin says where a packet came from.
type origin struct {
	from    *Attachment // a pod's or the host's; nil for the stack and the Link
	sender  *peer       // the Link's; nil otherwise
	wrapped bool        // it came encapsulated from the peer
	paced   bool        // the sender waits by itself until an attachment's limit has room
}

func (o *origin) fromStack() bool { return o.from == nil && o.sender == nil }

// Values of flow.Entry.Via that are no peer's id: peers' ids are hashes and practically never this small.
const (
	viaRoute uint64 = 0
	viaStack uint64 = 1
)

// answer is what the sender is sent.
type answer uint8

const (
	noAnswer   answer = iota
	refused           // nobody takes it there: a reset for TCP, else port unreachable
	cut               // its connection is gone: a reset
	noNet             // there is no way to its network
	noHost            // nobody has the address
	prohibited        // it may not go there
	denied            // the Policy says so: a reset for TCP, else an ICMP error
	tooBig            // it does not fit where it would go
	neighbor          // a neighbour solicitation's: the router's Ethernet address
)

// drop ends the journey without a word to the sender. Like every end it gives false: no step follows.
func (j *journey) drop(why DropReason) bool {
	j.verdict, j.reason = Dropped, why
	return false
}

// refuse ends the journey with an answer to the sender.
func (j *journey) refuse(a answer, why DropReason) bool {
	j.verdict, j.reason, j.answer = Answered, why, a
	return false
}

// toStack ends the journey on this node.
func (j *journey) toStack() bool {
	j.verdict = ToStack
	return false
}

// toOutside ends the journey at a host socket.
func (j *journey) toOutside() bool {
	j.verdict, j.outside = ToStack, true
	return false
}

// walk takes a packet from its sender to its one Verdict. The steps are the life of a packet, top to bottom. Each goes
// by what those before it found out, and gives false when it knows how the journey ends. They decide; only carry acts.
func (w *worker) walk(j *journey) {
	s := w.path.snapshot.Load()
	if s == nil {
		w.count(Dropped, NotReady)
		return
	}
	_ = w.admit(s, j) && // Who sends it, and may it?
		w.bind(s, j) && // Which flow is it of: a known one, or one begun now as Balancer and Policy say?
		w.translate(s, j) && // What does it become by that?
		w.forward(s, j) // Who gets it?
	w.carry(s, j)
	w.count(j.verdict, j.reason)
	if w.path.observer != nil && (j.begun || j.reason != NotDropped) {
		w.tell(s, j)
	}
}
