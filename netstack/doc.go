// Package netstack is a node's packet path: it switches the frames of pods, translates Service addresses, and ends
// connections in a gVisor stack.
//
// # Theory of operation
//
// A Node has Ports, tables, a gateway and a Link.
//
//	pod A ─TAP─ Port ┐                                ┌ Port ─TAP─ pod B
//	pod C ─TAP─ Port ┼ pipeline: admit, flow, forward ┼ Link ─ WireGuard ─ other nodes
//	host  ─TAP─ Port ┘                                └ gateway (gVisor, relays) ─ host sockets ─ outside
//
// Whatever goroutine reads a Port's superframe (up to 64 KiB, as the pod's kernel made it) takes it through the steps of
// pipeline.go and writes it to where it goes, all by itself: no queue and no other goroutine in between. A few goroutines
// read all Ports (poll.Poller), each Port one at a time.
// The Link's goroutines call FromLink with batches of decrypted packets, the gateway's call WritePackets; both run the
// same steps.
//
// # The steps
//
//  1. Parse. The virtio-net header is written by the pod, so it must agree with our own parse.
//  2. Admit: source MAC and address must be the Port's own; a peer's must be the peer's.
//  3. Track: look the flow up, or ask the Balancer where it goes and insert it, atomically for both directions.
//  4. Translate, in place, with incremental checksums.
//  5. Forward: local Port, the Link, the gateway, or the host.
//
// What came from a pod, or from a peer that may send so, with a partial checksum keeps it, through translation too, up to
// whoever completes it: the kernel behind the TAP, or we for a TAP that cannot (toPlainPort), for fragments and for the
// quotes of ICMP errors. The gateway's stack verifies none, so toGateway verifies full ones. Package packet has the form.
//
// Each packet gets exactly one Verdict. What cannot be served is refused at once (a reset, an ICMP error), and counted
// under its DropReason.
//
// # Translation
//
// It happens once, on the node where the flow enters, so that no two nodes share state. A flow's entry holds both
// tuples: Orig as the first packet arrived, Reply as answers arrive. Entry.Via says where answers go when that is not
// where their destination address says: to the gateway, for connections that it opened as somebody else's address, or
// to the peer through whose host socket a client came in. Such a client's packets cross the Link as IP-in-IP between the
// two gateway addresses; admitWrapped has the rules.
//
// A flow whose backend is gone is found at its next packet: the entry remembers the generation of the Config in which
// its backend was last seen, and a newer one makes it ask again. There is no scan. TCP to a backend of another node goes on
// all the same while that node answers: it alone knows whether the pod lives, and resets what comes to a vacant address.
//
// # Who owns what
//
// A frame's buffer belongs to the Port's device and is borrowed until the handler returns. The Link may keep it, giving
// another one in exchange (Packet.Buf changes). What FromLink gets is borrowed until it returns. The gateway copies, or
// keeps a frame in the same way as the Link.
//
// # Locking
//
// The pipeline takes no lock: the Config is an immutable snapshot behind an atomic pointer, so is the table of Ports, and the flow
// table is read without locks. Only fragments and ICMP limits have mutexes, held for no I/O. A worker is the scratch
// memory of one goroutine; its counters are summed on demand.
//
// The gateway's stack calls WritePackets while it holds locks of its own, so nothing is delivered to it on that way back
// in the same goroutine (deliver, inject).
//
// # Start and restart
//
// Nothing is read from a Port before the first Set: packets wait in the TAP. The flow table lives in memory of the
// caller's, and goes on in the next process; descriptors are the keeper's business.
package netstack
