// Package ipam gives pods their addresses out of a node's podCIDRs and remembers them over crashes of the agent and of
// the machine.
//
// # Theory of operation
//
// A Lease says that an attachment (container and interface, as CNI names them) has one address of each range. It is
// held until it is released, and its addresses rest for a while after that, so that nobody who still has the old pod's
// address in a cache, a flow or a DNS answer reaches a stranger. Addresses are given out one after the other from where
// the last one was found, which makes the rest of most of them much longer.
//
// What is given out is in the journal, and on the disk, before it is told. The journal is a file of lines, each a
// checksum and one Lease in JSON; of several lines of one attachment the last counts. A line that was not written whole
// is found by its checksum and left out, and so costs the Lease that nobody had been told of. When most lines are out
// of date the file is written anew beside the old one and renamed over it. A line that cannot be written (a full disk)
// is taken back, and the Lease is refused; a release counts nevertheless, and the file is written anew as soon as there
// is room.
//
// The agent knows better than the journal who is attached: it tells so at its start (Keep), and releases what nobody
// has.
//
// # Time
//
// Within one process a rest is measured by the monotonic clock. Over a restart only the wall clock is left; a release
// that it puts into the future has just happened, so that a clock which was set back holds no address for longer than
// its rest.
package ipam
