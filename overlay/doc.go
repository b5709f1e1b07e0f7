/*
Package overlay is the userspace WireGuard mesh between the nodes: one Mesh per node, one peer per other node.

# Theory of operation

The engine is the device of golang.zx2c4.com/wireguard: handshakes, timers, replay windows, ciphers and the wire
format are its own, so a stock WireGuard is as good a peer as another Tapestry. What surrounds it is ours: a
tun.Device that knows superframes (tunnel), and a conn.Bind that knows batches (package underlay).

A packet to another node

 1. Send swaps the caller's full buffer for a free one and queues it in ring. No byte is copied. What comes from one pod
    for one peer has a lane of its own there. When that holds its share of the ring, Send waits: the port's goroutine
    stops reading its TAP, whose queue fills, and the pod's own stack slows down.
 2. WireGuard's only reader calls tunnel.Read, which takes superframes out of the ring, from each lane in turn the same
    number of bytes, and has packet.Segmenter cut them straight into WireGuard's buffers, checksums and outer header
    included. For a peer that takes them (Peer.TakesPartial) partial checksums stay partial. What does not fit waits for
    the next Read.
 3. WireGuard finds the peer by the (outer) destination in its allowed IPs, encrypts on all cores, and hands the batch
    to underlay.Bind.Send: one message per run of equal datagrams, one vector element per datagram, UDP_SEGMENT.

A packet from another node

 1. underlay's receiver has the kernel scatter coalesced datagrams (UDP_GRO) over WireGuard's buffers.
 2. WireGuard decrypts, drops replays and sources outside the peer's allowed IPs, and calls tunnel.Write with a batch of
    one peer. Probes are taken out, the rest goes to Options.Receive, borrowed.

Who runs in parallel: any number of Sends; one Read; one Write per peer; one prober. Send and Read share the ring's
mutex, held for a few moves of a pointer. The index of peers (table) is immutable and swapped by Set.

# Memory and delay

Every packet inside WireGuard occupies a buffer of 64 KiB, and its queues would hold a hundred thousand. So Read counts
what goes in, Bind.Send what comes out (inflight), and Read waits while that is more than inflightMax. Packets
for peers without a session are not counted, since they may never come out; of those there may be stagedMax per peer.

# Sessions

A new peer with an endpoint is greeted with a handshake at once. After a restart this ends the old session, which the
far side still uses and we cannot read, within a round trip; WireGuard alone would take 15 s to notice. A lost handshake
is repeated after a quarter of a second instead of 5 s. The end with the larger key lets the other one go first, because
handshakes that cross destroy each other; when it happens all the same, the session carries no probe, is distrusted
and replaced.

What answers a peer leaves from the address that the peer wrote to, as long as that is ours; with several addresses the
route could choose another, and a firewall on the way, or a stock WireGuard behind a NAT, would know nothing of it.
An endpoint roams to wherever authenticated datagrams come from, but datagrams from a pod range or from what
Options.Forbidden names are dropped unread: a tunnel whose outside runs through its own inside never recovers.

# Floods

Whoever knows a node's public key may have it compute handshakes. They come through package gate first, which charges them to the
addresses that they come from and leaves each peer its own; what exceeds needs proof of its address, WireGuard's cookie. So does
WireGuard by itself, but only when its queue is long: 2,000 handshakes a second, 2.4 Mbit/s, took a fifth of a processor.
Garbage costs 2 us a datagram, which is the kernel's part.

# Path MTU

The socket never fragments. What fits is known from three sources: the underlay's MTU, the kernel (the interface, and
what routers said by ICMP; asked for every 10 s and when a send fails with EMSGSIZE), and probes through the tunnel, for
paths that swallow large packets in silence. pathMTU decides, without clock or socket: the believed size is verified
every 10 s, every second while large packets flow, and at once when nothing comes back for a quarter of a second;
when it is lost three times while a small probe is answered, all smaller steps are tried together and the largest
answered one is taken; every minute the larger ones are tried. A larger size than the kernel's is never tried: after
an ICMP message it remembers for 10 minutes (net.ipv4.route.mtu_expires).

MTU tells the pipeline what fits, and the pipeline tells the pods. What is sent larger all the same is dropped
by the kernel and counted.

# Not done here

Policy, decapsulation and coalescing are the receiver's business, as is choosing the peer.
*/
package overlay
