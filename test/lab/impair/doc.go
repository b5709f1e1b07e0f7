// Package impair makes the underlay between two nodes of a lab worse: loss, delay, jitter, reordering, duplication, a
// rate limit and a smaller MTU. It does so in userspace, since many kernels have no netem.
//
// # Theory of operation
//
// A node is behind a port of the underlay's bridge. While it is impaired, the port moves to a bridge of its own, and
// a Segment carries frames between the two bridges through a TAP in each:
//
//	node A -- port -- [imp0] -- imp0a ~ Segment ~ imp0b -- [underlay] -- port -- node B
//
// The TAPs have no offloads, so the kernel cuts superframes and completes checksums before the Segment sees them: it
// counts, delays and loses packets as a wire would. Removing the Segment moves the port back.
//
// Unicast frames between the two nodes' Ethernet addresses are impaired, in both directions alike, all of them or those
// of one IP version; all others pass untouched, broadcasts of A and B among them. Several Segments may sit in front of
// one port, one for each pair, and may be removed in any order.
//
// An Engine decides about each frame, a pure function of the seed, the direction, the number of the frame within it,
// its size and the time. It draws the same random numbers for each frame whatever is switched on; the same frames
// lost at a given seed stay lost when a delay is added.
package impair
