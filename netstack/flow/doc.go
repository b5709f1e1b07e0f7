// Package flow is the flow table. For every connection it remembers both tuples, the chosen backend and the state, so
// that translation is decided once and applied to every later packet of either direction.
//
// The package is larger than others because all code that reads or writes a slot must know all other code that may do
// so at the same time.
//
// # Theory of operation
//
// The entries live in memory that the caller provides, usually a shared memfd held by the keeper, and so survive the
// death of the process. That memory starts with a header (magic, version, layout sizes, hash seed). After it come an
// array of slots of 128 bytes and an array of ledgers of 64 bytes, one for each slot. It holds no pointer, no lock and
// no index of anything outside. Everything else is private to the process and made anew by Open: the index, the owners
// of the slots, the locks and the table's counters.
//
//	shared   | header | slot 0   | slot 1   | ...        for packets: tuples, backend, via, kind, state, last seen, marks
//	shared            | ledger 0 | ledger 1 | ...        the rest: owner, cluster, policy, age, counts, sum
//	private  | bucket 0 | bucket 1 | ...                 64 bytes, room for 12 keys; two keys for each flow
//
// A bucket is one cache line: twelve tags of 8 bits, twelve keys (a slot number, a direction, six more bits of the
// tag), and 32 bits that describe overflow: how many keys have their home here but are in one of the next buckets, and
// how far away they are at most. A lookup hashes the tuple, reads its home bucket, compares all tags at once, and for a
// key that fits reads the slot (two adjacent lines). It looks further only where keys overflowed or a tag belonged to
// another key, one time in 30 when the table is full. It practically never reads the slot of another flow.
//
// In a large table a lookup costs two reads of memory, the second of which needs the result of the first. The code of a
// lookup is short, and free of branches that depend on where things are, so that the processor can begin the next
// lookup while it waits. For a batch, Prefetch starts all first reads at once, and then all second ones.
//
// Readers take no lock. A slot has a sequence number, whose low bits are repeated in its live word beside the state.
// The live word becomes 0 before any other word of the slot changes, and is written after them. A reader that finds 0
// in the live word, another sequence number at its end, or another tuple, treats the slot as that of another flow. The
// words of a slot are read through sync/atomic. Those that packets change are also written so, counts and marks
// excepted. The constant words, and those of a ledger, are ordered by the sequence number. A slot is complete before
// the index names it, and the index forgets it before it is emptied. Words that a packet changes (last seen, state,
// counts, marks) may change under one sequence number. Last seen is a plain store once per second and flow; the state
// is exchanged together with the sequence number, so that a late reader cannot touch the slot's next flow.
//
// Writers (insert, delete, expiry) lock the stripes of both keys, in order. Keys with equal hashes share a stripe,
// which makes insertion atomic for both keys. Keys in a bucket are claimed by compare-and-swap, since stripes share
// buckets.
//
// There is one key space: a tuple is in the table once, be it the original of one flow or the reply of another. When
// the reply tuple of a new flow is taken (one client port to two Services over one backend), Insert chooses another
// source port.
//
// # Resets
//
// A reset ends a flow only if its receiver will obey it, which it does when the reset's sequence number is in its
// window. So the table keeps a mark for each direction of a TCP connection: how far its stream has arrived, as the
// other end said last. A reset counts from the mark on, up to 32 MiB beyond it. In SYN-SENT it must acknowledge the
// SYN; a SYN that an end sends because it lost the connection may be answered so, too. Any other reset changes nothing,
// and is no sign of life. Where a mark is not known, because the table did not see that end say anything, every reset
// counts.
//
// A mark is coarse, 16 bits, so that both fit beside the counters, in a line that every packet writes anyway. A random
// number is taken for a true one at one time in 127, and a SYN moves the mark, for whoever can send with the flow's
// tuple. So a reset that counts leaves the flow its tuples for two minutes, and packets of both ends bring the flow
// back (revived).
//
// # Whose flow goes
//
// Each flow is charged to its owner, who began it. When the table is full, package share decides whose flow makes room
// for a new one: a flow of the owner with the most, if that owner has more than the new flow's owner; otherwise one of
// the new flow's owner. So nobody's flows, whatever their state, can displace those of an owner with fewer. The node
// itself and clients from outside have a reserve. Package slots keeps who has which slots, and names some slots of that
// owner at random. Of their flows one goes: an expired one; else one of a client who has many more than other clients;
// else the cheapest. Ended, unanswered and long idle flows are cheaper than established connections; among equals the
// one that has been idle for longest goes. A search is bounded, and sees a flow that is worth keeping only once, as
// long as its owner has others.
//
// Ports are given in the same way. Where the reply tuples of many clients differ in nothing but the port, since they
// come from one address of this node or leave from one egress address, one client could take all ports. So when none is
// left, a flow gives up its port that is cheap, or whose client or owner has many more than the new flow's (freePort).
//
// # Being killed
//
// SIGKILL may come between any two stores. Open discards, and counts, a slot whose sequence number is odd, whose live
// word has another sequence number, or whose sum over the constant words is wrong. Generations of the caller's tables
// (Checked) mean nothing to the next process and are reset. Times are of the boot-time clock. Only one process writes
// at a time: the keeper's lease ensures that, not this package.
//
// # Versions of the memory
//
// The memory is of version 3. An agent reads every version up to its own. It converts what it finds into new memory,
// which replaces the old (Serves, Convert); so an upgrade loses no flow. An older agent does not know newer memory and
// formats it anew: a downgrade loses all flows. Version 1 had no ledgers; Options.Owner has to say who began its flows.
// Version 2 had no marks: a reset of its flows counts until the other end has said something.
//
// What the next version may change, and how:
//
//   - The header's words mean the same in all versions and never move. After them there is room for more words, which
//     are 0.
//   - The bits of a slot's meta from 17 on are 0, which will mean that nothing is known. They go into the sum. So an
//     agent may give them a meaning without a new version, if they stay constant while the flow lives: an agent that
//     does not know the meaning keeps them and the flow.
//   - Every other change needs a new version: another hash, another sum, one more state. The agent of that version
//     keeps a frozen reader of each earlier version (records; v1.go and v2.go). Such a reader depends on no constant of
//     the current version, and is tested with an image made by an agent of its version (testdata). No version is ever
//     forgotten.
//
// # Time
//
// Run reads the clock once per second, by Sweep, which also walks one sixtieth of the slots and frees expired flows. An
// expired flow is a miss even before it is swept. When more than nine tenths of the capacity is in use, Sweep applies
// shorter times to owners who have more than an equal share.
package flow
