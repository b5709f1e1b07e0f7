// Package clientrelay carries UDP between clients of this node's host sockets, which are those of NodePorts, and the
// backends of Services, without a stack in between.
//
// # Theory of operation
//
//	client ─▶ Door ── recvmmsg ─▶ Ready ─▶ Options.Send ─ pipeline ─ TAP or Link ─▶ backend
//	client ◀─ Door ◀─ sendmsg ─── Relay.Deliver ◀──────── pipeline ─ TAP or Link ◀─ backend
//
// A Door is a host socket at which clients arrive. An Exchange is what one client at one local address says to a
// backend, and hears from it. The backend sees the client's own address and port, where these are free.
//
// The host of a Door (package services/nodeport) knows the clients: Serve asks it, for the datagrams of each, where
// they go. It answers with an Exchange or, for backends that the kernel reaches, with a writer. It is asked once for
// all datagrams of one client that were read together, so it may change its mind at any time.
//
// Towards backends, what comes is read many datagrams at a time and becomes superframes (package superframe). Towards
// clients, the goroutine that carries an answer sends it, straight out of the frame, and a superframe as one
// (UDP_SEGMENT). Both leave from the address that the client wrote to.
//
// A backend that refuses (ICMP) ends the Exchange, so that the next datagram may go to another one. A path that carries
// less than the pods' MTU is remembered for the Exchange, and larger datagrams are sent in fragments.
//
// # Locking
//
// The table of Exchanges has many shards, each with a lock for reading. No lock is held over a system call, over
// Options.Send or while the host is asked. A Door closes its descriptor when nobody uses it any more, so nobody sends
// through a number that belongs to another socket already. Close and Serve wait for that.
package clientrelay
