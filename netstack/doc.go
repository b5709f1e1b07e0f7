// Package netstack is a node's packet path: it switches the frames of pods, translates Service addresses, and ends
// connections in a gVisor stack.
//
// The package is larger than others because all steps share the journey, and a journey in a package of its own would
// have to export everything it holds.
//
// # Theory of operation
//
// A Path has attachments, tables, a stack and a Link.
//
//	pod A ─ TAP ┐                                    ┌ TAP ─ pod B
//	pod C ─ TAP ┼ steps: admit, bind, translate, ... ┼ Link ─ WireGuard ─ other nodes
//	host  ─ TAP ┘                                    └ stack (gVisor, relays) ─ host sockets ─ outside
//
// The goroutine that reads a superframe from an attachment (up to 64 KiB, as the pod's kernel made it) takes it through
// the steps and writes it to its destination, without handing it to another goroutine. A few goroutines read all
// attachments (poll.Poller); an attachment is read by one of them at a time. The Link's goroutines call FromLink with
// batches of decrypted packets, and the stack's goroutines call fromStack and fromRelay; both run the same steps. A
// packet waits in three places only: in the backlog of an attachment with a limit, in the Link while that is busy, and,
// as a later fragment, for the first one of its datagram.
//
// # The steps
//
// Before the steps the packet is parsed. The pod wrote the virtio-net header, so the header must agree with the parsed
// packet. A journey is one packet on its way through the steps, with all that is known of the packet: who sent it, its
// flow, its verdict. All steps have the same form; walk lists them.
//
//  1. admit: the source MAC and address must be the attachment's own. The source of a peer's packet must be the peer's
//     (the Link checks each packet, and bind checks again when a flow begins). The host TAP may bring packets of routed
//     clients, too; routed.go has the rules. A pod with a quota is held to its packets here, and to its new flows
//     where bind begins one.
//  2. bind: look up the flow. For a new flow the Balancer chooses the backend and the Policy decides whether the flow
//     may be; it is inserted atomically for both directions. An ICMP error belongs to the flow of the packet that it
//     quotes, if the sender of the error got that packet. A later fragment belongs to the flow of its first fragment,
//     and waits for that. A datagram that the host sends from another of its addresses than was asked belongs to the
//     flow of the question (answersAs).
//  3. translate: rewrite the packet in place, with incremental checksums.
//  4. forward: find out who gets the packet: a TAP of this node, a peer, the stack, the host, the outside. How flows of
//     pods leave the cluster is decided where they begin; exits.go has the rules.
//
// Steps decide and do not act. After them carry writes the packet to where they sent it, or answers its sender. So the
// same list can explain what would become of a packet: bind would ask the flow table by Peek and insert nothing, carry
// would be left out, and the journey would then hold the verdict, the reason and all that was found out.
//
// A packet from a pod, or from a peer that may send so, may have a partial checksum. It keeps it through translation
// until somebody completes it: the kernel behind the TAP; toPlainTAP, for a TAP that cannot; the code that cuts
// fragments or quotes packets in ICMP errors. The stack verifies no checksum, so toStack verifies full ones. Package
// packet documents the form of partial checksums.
//
// Resources that senders share are charged to whoever sends: to a pod, by its attachment, and to another node as one
// sender, whatever addresses it sends from, those of its clients included (Path.ownerOf).
//
// Each packet gets exactly one Verdict (Verdict says what Held adds). A packet that cannot be served is refused at once
// (a reset, an ICMP error) and counted under its DropReason. The answer is about the packet as its sender sent it:
// translation is undone first.
//
// # Translation
//
// A packet is translated once, on the node where its flow enters, so that no two nodes share state. What leaves from an
// egress address gets that as its source there, and a free port on the node by which it leaves (exits.go). The other
// exception is a SYN that a Service led from another node to an endpoint of this node which gets no new connections any
// more: this node knows that first, and steers the SYN to another endpoint (Options.Steer) if the Policy permits it.
// The other node marks such SYNs inside the tunnel, by a reserved bit of the TCP header, and this node removes the
// mark; what arrives as IP-in-IP is led by a Service anyway. So nobody who asks for a pod itself gets another one. What
// goes on to a third node has this node's stack address as its source, so that answers come back here, and no mark, so
// that nothing is steered twice.
//
// A backend may refuse a connection that a Service led to it. Then the node that translated the SYN sends it to another
// one, and the client hears of the refusal only when there is no other (another.go). A backend may also give up what it
// has accepted, before it has heard anything. Then another one takes the connection over, and its sequence numbers are
// translated, too (takeover.go).
//
// The flow's entry holds both tuples: Orig as the first packet arrived, Reply as answers arrive. Entry.Via says where
// answers go when their destination address does not: to the stack, for connections that it opened from somebody else's
// address, or to the peer through whose host socket or host TAP a client came in, or to the host TAP, for routed
// clients. The packets of such a client cross the Link as IP-in-IP between the two stack addresses; admitWrapped has
// the rules. IP-in-IP between other addresses is a pod's own, and is treated as any other protocol. The entry of a
// connection that was taken over has in Via how far its numbers are shifted.
//
// # Changes under known flows
//
// A flow whose backend is gone, or which the Policy no longer permits, is found at its next packet: the entry remembers
// the generation in which the flow was last judged, and a newer generation makes bind judge it again. There is no scan.
// A flow that the Policy no longer permits stays in the table, and all its packets are refused until it expires.
// Otherwise a packet of its far end would begin the flow anew, in a direction that may be permitted.
// The generation moves when the Config, the Balancer or the Policy really changes. TCP to a backend of another node
// goes on all the same while that node answers: that node alone knows whether the pod lives, and resets what comes to a
// vacant address.
//
// A frontend, too, may change while it is in use: a Service may appear at an address that clients use already, give up
// a port, or lose it to another Service. Connections outlive that. A datagram, and a SYN of the client, goes where its
// address leads now, with the same ports. A SYN is judged in every state of the flow, since the client may have lost
// the connection without a word.
//
// A packet from the backend does not settle that its flow may go on; the Policy, however, judges packets of both
// directions.
//
// # Who owns what
//
// A frame's buffer belongs to the attachment's device and is borrowed until the handler returns. The Link may keep the
// buffer and give another one in exchange (Packet.Buf changes). Packets given to FromLink are borrowed until it
// returns. The stack copies a frame, or keeps it in the same way as the Link.
//
// # Locking
//
// A packet of a known flow needs no locks: the Config is an immutable snapshot behind an atomic pointer, so is the
// table of attachments, and the flow table uses sequence numbers. A new flow takes two of the flow table's many locks.
// Fragments, ICMP limits, backlogs and the lending of workers have mutexes. None of these locks is held during I/O. A
// worker is the scratch memory of one goroutine; its counters are summed on demand.
//
// The stack sends packets while it holds locks of its own. So what these packets cause is never delivered back to the
// stack in the same goroutine (Stack.Deliver).
//
// # Start and restart
//
// Nothing is read from an attachment before the first Set: packets wait in the TAP. The flow table lives in memory that
// the caller owns, and the next process goes on with it. Descriptors are the keeper's business.
package netstack
