/*
Package overlay is the userspace WireGuard mesh between the nodes: one Mesh per node, one peer per other node.

The package has more than 1,500 lines because sessions, path MTU and the queue before WireGuard share each peer's state.

# Theory of operation

The engine is the device of golang.zx2c4.com/wireguard: handshakes, timers, replay windows, ciphers and the wire
format are its own, so a stock WireGuard can be a peer as well as another Tapestry can. This package adds a
tun.Device that handles superframes (tunnel), and a conn.Bind that handles batches (package underlay).

A packet to another node

 1. Send swaps the caller's full buffer for a free one and queues the full one in ring. No byte is copied. The packets
    from one pod to one peer have a lane of their own there. When the lane holds its share of the ring, Send waits: the
    pod's TAP is not read meanwhile, its queue fills, and the pod's own stack slows down.
 2. WireGuard's only reader calls tunnel.Read. It takes superframes out of the ring, the same number of bytes from each
    lane in turn, and has packet.Segmenter cut them straight into WireGuard's buffers, checksums and outer header
    included. Partial checksums stay partial for a peer that takes them (Peer.TakesPartial). Packets that do not fit
    wait for the next Read.
 3. WireGuard finds the peer by the (outer) destination in its allowed IPs, encrypts on all cores, and hands the batch
    to underlay.Bind.Send: one message per run of equal datagrams, one vector element per datagram, UDP_SEGMENT.

A packet from another node

 1. underlay's receiver has the kernel scatter coalesced datagrams (UDP_GRO) over WireGuard's buffers.
 2. WireGuard decrypts, drops replays and sources outside the peer's allowed IPs, and calls tunnel.Write with a batch of
    one peer. Probes are taken out; the other packets go to Options.Receive, borrowed.

These run in parallel: any number of Sends; one Read; one Write per peer; one prober. Send and Read share the ring's
mutex, which is held only while pointers are moved. The index of peers (table) is immutable, and Set swaps it.

# Memory and delay

Every packet inside WireGuard occupies a buffer of 64 KiB, and WireGuard's queues hold up to a hundred thousand packets.
So Read counts the packets that go in, Bind.Send those that come out, and Read waits while the difference (inflight) is
inflightMax or more. Packets for peers without a session are not counted, since they may never come out; WireGuard gets
stagedMax of them per peer, and a few more from time to time.

# Sessions

The Mesh begins a handshake with a new peer that has an endpoint at once. After a restart the far side still uses the
old session, which this node can no longer read. The handshake ends that session within a round trip; WireGuard alone
would take 15 s to notice. A lost handshake is repeated after a quarter of a second instead of 5 s. The end with the
larger key lets the other one go first, because handshakes that cross destroy each other; not so after a restart
(Options.Resumes), when the far side has a session and begins none. When they cross all the same,
the session carries no probe, and the prober replaces it: four times at once, and then after pauses that grow to two
minutes, since some peers answer handshakes and never a probe.

Packets for a peer without a session are lost, but for a few. So whoever restarts meets its peers before it hears its
pods (Meet). WireGuard does not tell when there is a session: the prober looks every 2 ms while it handles a response.

An initiation must be newer than the last one, by the clock of who sends it. WireGuard takes that time from the system
clock, and gives nobody else a say. So after its clock was set back, a restarted node asks its peers in vain; a peer
that is asked in vain begins a handshake itself: after 0.7 s while it has a session, and else after 5 s.

Answers to a peer leave from the address that the peer wrote to, as long as this node has that address. A node with
several addresses could otherwise answer from another one, which a firewall on the way, or a stock WireGuard behind a
NAT, does not know. A peer's endpoint roams to wherever authenticated datagrams come from, but datagrams from a pod
range or from an address that Options.Forbidden names are dropped unread: a tunnel whose outside runs through its own
inside never recovers.

# Several addresses of a peer

WireGuard knows one address of a peer. A node often has addresses of both families, and the path to one of them may
break, in one direction or both. Package candidates decides where a peer is talked to; this package carries that out.
When packets go out and nothing comes back for two looks, a round of probes begins, and after it probes go to the peer's
other addresses (diverter), while everything else stays where it is. The answer to such a probe comes back over the same
family, so that both directions are known to work. Then the peer is moved: for a second everything goes to the new
address, whatever WireGuard hears meanwhile (diverter.pin), and the peer's WireGuard follows. Probes say that this end
has moved, so that the far end looks where its WireGuard sends now, since each address has a path MTU of its own.

Nobody without the peer's key can have a peer moved: only answers to probes count, and they bear this Mesh's cookie. A
peer can have itself moved among the addresses that its Node names, and nothing that goes to an address of another peer
is diverted then. Attempts for a handshake go to each address in turn.

# Floods

Anybody who knows a node's public key can make the node compute handshakes. Handshakes therefore pass package gate
first. The gate charges them to the addresses that they come from, and each peer's address has a rate of its own. A
sender above its rate must prove its address with WireGuard's cookie. WireGuard by itself asks for cookies too, but only
when its queue is long: 2,000 handshakes a second, 2.4 Mbit/s, took a fifth of a processor. A datagram of garbage costs
2 us, which is the kernel's part.

# Path MTU

The socket never fragments. There are three sources for the size that fits: the underlay's MTU; the kernel, which knows
the interface and what routers said by ICMP, and is asked eight times a second while large packets go out, every 10 s,
and when a send fails with EMSGSIZE; and probes through the tunnel, for paths that swallow large packets in silence.
Package pathmtu decides when to probe and what to believe. The kernel remembers for ten minutes what a router said, so
the socket ignores that (IP_PMTUDISC_PROBE), and probes find a path that is good again within half a minute.

MTU tells the pipeline what fits, and the pipeline tells the pods. Of IPv6 the pipeline gives the Mesh packets of up to
1,280 bytes whatever fits, because no smaller path MTU may be told of (RFC 8201 4). Where they do not fit, Read cuts them
(package narrow), and the pipeline of the far node joins them. Datagrams that do not fit the interface are dropped by
the kernel and counted.

# Not done here

The packet path applies policy, decapsulates, coalesces, and chooses the peer of what it sends.
*/
package overlay
