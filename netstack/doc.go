// Package netstack is a node's packet path: it switches the frames of pods, translates Service addresses, and ends
// connections in a gVisor stack.
//
// # Theory of operation
//
// A Path has attachments, tables, a stack and a Link.
//
//	pod A ─ TAP ┐                                    ┌ TAP ─ pod B
//	pod C ─ TAP ┼ steps: admit, bind, translate, ... ┼ Link ─ WireGuard ─ other nodes
//	host  ─ TAP ┘                                    └ stack (gVisor, relays) ─ host sockets ─ outside
//
// The goroutine that reads an attachment's superframe (up to 64 KiB, as the pod's kernel made it) takes it through the
// steps and writes it to where it goes, all by itself. A few goroutines read all attachments (poll.Poller), each
// attachment one at a time. The Link's goroutines call FromLink with batches of decrypted packets, the stack's call
// WritePackets; both run the same steps. A packet waits in two places: in the backlog of an attachment with a limit,
// and in the Link while that is busy.
//
// # The steps
//
// Before the steps the packet is parsed; the virtio-net header is written by the pod, so it must agree with our own
// parse. A journey is one packet on its way through the steps, and all that is known of it: who sent it, its flow, how
// it ends. All steps have one shape; walk is the list of them.
//
//  1. admit: source MAC and address must be the attachment's own; a peer's must be the peer's (the Link looks at each
//     packet, and bind again when a flow begins).
//  2. bind: look the flow up. A new one is what the Balancer says, if the Policy lets it be, and is inserted atomically for
//     both directions. An ICMP error has the flow of the packet it quotes, if its sender was sent that, and a later fragment
//     that of its first.
//  3. translate, in place, with incremental checksums.
//  4. forward: find out who gets it: a TAP of this node, a peer, the stack, the host, the outside.
//
// The package is larger than others: the steps share the journey, which as a package of its own would have to export
// all it has.
//
// Steps decide and do not act: after them carry writes the packet to where they sent it, or answers its sender. So the
// same list can explain what would become of a packet: on a journey for which bind asks the flow table by Peek and
// inserts nothing, and after which carry is left out, the verdict, the reason and all that was found out stand in the
// journey.
//
// What came from a pod, or from a peer that may send so, with a partial checksum keeps it, through translation too, up
// to whoever completes it: the kernel behind the TAP, or we for a TAP that cannot (toPlainTAP), for fragments and for
// the quotes of ICMP errors. The stack verifies none, so toStack verifies full ones. Package packet has the
// form.
//
// What senders share is charged to whoever sends: a pod, by its attachment, and another node as one, whatever
// addresses it sends from, its clients' among them (Path.ownerOf).
//
// Each packet gets exactly one Verdict. What cannot be served is refused at once (a reset, an ICMP error), and counted
// under its DropReason. The answer is about the packet as its sender sent it: translation is undone for it.
//
// # Translation
//
// It happens once, on the node where the flow enters, so that no two nodes share state. A flow's entry holds both
// tuples: Orig as the first packet arrived, Reply as answers arrive. Entry.Via says where answers go when that is not
// where their destination address says: to the stack, for connections that it opened as somebody else's address, or
// to the peer through whose host socket a client came in. Such a client's packets cross the Link as IP-in-IP between
// the two stack addresses; admitWrapped has the rules.
//
// # What changes for flows that are known
//
// A flow whose backend is gone, or that the Policy permits no longer, is found at its next packet: the entry remembers
// the generation in which it was judged last, and a newer one makes it ask again. There is no scan. The generation
// moves when the Config, the Balancer or the Policy did change. TCP to a backend of another node goes on all the same
// while that node answers: it alone knows whether the pod lives, and resets what comes to a vacant address.
//
// A frontend may change, too, under those who use it: a Service comes to be at an address that they dial already, gives
// up a port, or leaves it to another. Connections outlive that. A datagram, and a SYN that was not answered, goes where
// its address leads by now, on the ports that it had.
//
// A packet of the backend does not settle that its flow may go on; the Policy judges packets of both directions.
//
// # Who owns what
//
// A frame's buffer belongs to the attachment's device and is borrowed until the handler returns. The Link may keep it,
// giving another one in exchange (Packet.Buf changes). What FromLink gets is borrowed until it returns. The stack
// copies, or keeps a frame in the same way as the Link.
//
// # Locking
//
// What a packet of a known flow needs is read without locks: the Config is an immutable snapshot behind an atomic
// pointer, so is the table of attachments, and the flow table has sequence numbers. A new flow takes two of the flow
// table's many locks. Fragments, ICMP limits, backlogs and the lending of workers have mutexes, and none of all these
// is held for I/O. A worker is the scratch memory of one goroutine; its counters are summed on demand.
//
// The stack calls WritePackets while it holds locks of its own, so nothing is delivered to it on that way
// back in the same goroutine (Stack.Deliver).
//
// # Start and restart
//
// Nothing is read from an attachment before the first Set: packets wait in the TAP. The flow table lives in memory of
// the caller's, and goes on in the next process; descriptors are the keeper's business.
package netstack
