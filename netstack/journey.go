package netstack

import (
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// journey is one packet on its way through the steps: where it comes from, what the steps found out, and how it ends. A
// step reads only what earlier steps wrote here. A journey lives on the stack of the goroutine that carries the packet.
type journey struct {
	packet *packet.Packet
	origin
	begun   bool // the packet began its flow
	awaited bool // later fragments wait for this first one
	verdict Verdict
	reason  DropReason
	answer  answer // of the verdict Answered
	outside bool   // with ToStack: the packet goes on over host sockets
	wrap    bool   // with ToLink: the packet is encapsulated
	// quoted is the packet that an ICMP error quotes; nil for any other packet.
	quoted *packet.Packet
	// orig is the packet's tuple before translation, its space included.
	orig packet.Tuple
	// as is the source that orig would have if the host had answered from the address that was asked; nil if it did.
	// See answersAs.
	as  *packet.Addr
	mtu int32 // with ToLink and tooBig: the largest IP packet in bytes that fits there
	// shift is between the numbers of the flow's backend and those that its client knows; see TakenOver. shifted is set
	// when the packet has become that of the other end by it.
	shift   packet.Shift
	shifted bool
	// hit is the packet's flow, found or begun. If hit.Translate is set, the packet becomes hit.To. It is also set
	// while there is a shift.
	hit flow.Hit
	// via says where the flow sends the packet when its destination address does not, as flow.Entry.Via.
	via  uint64
	rule uint64 // of the Policy's ruling, if it was asked
	// moved is set when the packet's flow ended because it leaves by another node now, from the same address. The flow
	// that it begins instead was paid for, and keeps port, which the server knows, the backend (worker.kept), and
	// shift.
	moved bool
	port  uint16
	takes bool        // the packet is a SYN for a backend that is to take its connection over
	to    *Attachment // with ToTAP
	peer  *peer       // with ToLink
}

// origin says where a packet came from.
type origin struct {
	from    *Attachment // the attachment it was read from; nil for the stack and the Link
	sender  *peer       // the peer it came from over the Link; nil otherwise
	wrapped bool        // it came encapsulated from the peer
	routed  bool        // its sender is a routed client; see admitRouted
	service bool        // the peer's SYN was led here by a Service
	leaving bool        // it came encapsulated from the peer to leave the cluster by this node; see admitExit
	answers bool        // it came encapsulated from the peer as an answer to what left by that; see admitExit
	notice  flow.State  // not 0: it is a notice of a flow in this state; see handOver
	paced   bool        // the sender waits by itself until an attachment's limit has room
	nested  bool        // it is carried in the course of sending a packet of the stack; see askAnother
}

func (o *origin) fromStack() bool { return o.from == nil && o.sender == nil }

// byStack reports whether the stack or a relay waits in this goroutine until the packet is carried, perhaps with locks.
func (o *origin) byStack() bool { return o.nested || o.fromStack() }

// Values of flow.Entry.Via that are no peer's ID: IDs of peers are hashes and practically never this small.
const (
	viaRoute uint64 = 0
	viaStack uint64 = 1
	viaHost  uint64 = 2 // by the host TAP, to a routed client or a server outside
)

// answer says what the packet's sender is sent.
type answer uint8

const (
	noAnswer   answer = iota
	refused           // nobody listens there: a reset for TCP, an ABORT for SCTP, else port unreachable
	cut               // the connection is gone: a reset or an ABORT
	noNet             // there is no route to the network
	noHost            // nobody has the address
	prohibited        // the packet may not go there
	denied            // the Policy refuses it, or it gets no port: a reset for TCP, an ABORT for SCTP, else an ICMP error
	tooBig            // the packet is larger than its path
	neighbor          // to a neighbour solicitation: the router's Ethernet address
)

// drop ends the journey without an answer to the sender. Like every method that ends the journey it returns false: no
// step follows.
func (j *journey) drop(why DropReason) bool {
	j.verdict, j.reason = Dropped, why
	return false
}

// refuse ends the journey with an answer to the sender.
func (j *journey) refuse(a answer, why DropReason) bool {
	if j.notice != 0 {
		return j.drop(why) // who is refused by it did not send it
	}
	j.verdict, j.reason, j.answer = Answered, why, a
	return false
}

// noted ends the journey of a notice, whose flow is known now.
func (j *journey) noted() bool {
	j.verdict = Noted
	return false
}

// toStack ends the journey in this node's stack.
func (j *journey) toStack() bool {
	j.verdict = ToStack
	return false
}

// toOutside ends the journey at a host socket.
func (j *journey) toOutside() bool {
	j.verdict, j.outside = ToStack, true
	return false
}

// walk takes a packet from its sender to its one Verdict. The steps are the life of a packet, top to bottom. Each
// relies on what earlier steps found out, and returns false when it knows how the journey ends. Steps decide; only
// carry acts. s is the snapshot in which the sender was found: one packet sees one state of the cluster.
func (w *worker) walk(s *snapshot, j *journey) {
	_ = w.admit(s, j) && // Who sends it, and may it?
		w.bind(s, j) && // Which flow is it of: a known one, or one that begins now, as Balancer and Policy say?
		w.translate(s, j) && // What does it become by translation?
		w.forward(s, j) // Who gets it?
	w.carry(s, j)
	w.count(j.verdict, j.reason)
	if w.path.observer != nil && j.reason != NotDropped {
		w.tell(s, j)
	}
	if j.awaited {
		w.catchUp(s, j)
	}
}
