// Package ipam assigns pods addresses from a node's podCIDRs, and remembers them over crashes of the agent and of the
// machine.
//
// # Theory of operation
//
// A Lease says that an attachment (container and interface, as CNI names them) has one address of each range. It is
// held until it is released. Its addresses then rest for a while, so that nobody who still has the old pod's address
// in a cache, a flow or a DNS answer reaches a stranger. Addresses are assigned in order, each search starting behind
// the last assigned address, which makes most addresses rest much longer.
//
// A Lease is in the journal, on the disk, before anybody is told. The journal is a file of lines, each a checksum and
// one Lease in JSON; the last line of an attachment counts. The checksum reveals a line that was not written
// completely. That line is ignored, which loses only a Lease that nobody had been told of. When most lines are out of
// date, a new file is written beside the old one and renamed over it. When a line cannot be written (a full disk), it
// is taken back and the Lease is refused. A release counts all the same, and the file is written anew as soon as
// there is room.
//
// The agent knows better than the journal which pods are attached: it reports them at its start (Keep), and releases
// the Leases of all others.
//
// # Time
//
// Within one process, monotonic time measures a rest. After a restart only the wall clock is left. A release that
// lies in the future by that clock counts as having just happened, so a clock that was set back holds no address for
// longer than its rest.
package ipam
