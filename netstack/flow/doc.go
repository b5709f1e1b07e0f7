// Package flow is the flow table: it remembers for every connection both of its tuples, the backend that was chosen
// for it and how far it has come, so that translation is decided once and applied to every later packet of either
// direction.
//
// # Theory of operation
//
// The entries live in memory which the caller gives, a shared memfd held by the keeper as a rule, and so survive the
// death of the process. That memory starts with a header (magic, version, layout sizes, hash seed) and goes on with
// an array of slots of 128 bytes and one of ledgers of 64 bytes, one for each slot. It holds no pointer, no lock and
// no index of anything outside. Everything else is private to the process and made anew by Open: the index, who has
// which slots, the locks and the counters of the table.
//
//	shared   | header | slot 0   | slot 1   | ...        for packets: tuples, backend, via, kind, state, last seen
//	shared            | ledger 0 | ledger 1 | ...        the rest: owner, cluster, policy, age, counts, sum
//	private  | bucket 0 | bucket 1 | ...                 64 bytes, room for 12 keys; two keys for each flow
//
// A bucket is one cache line: twelve tags of 8 bits, twelve keys (a slot number, a direction, six more bits of the
// tag), and 32 bits that count the keys which belong here and had to go to one of the next buckets. A lookup hashes
// the tuple, reads the line of its home bucket, compares all tags at once and for a key that fits reads the slot (two
// adjacent lines). Only where keys had to go on, or a tag was another key's, does it look further, one time in 30
// when the table is full; practically never does it read a slot in vain.
//
// What a lookup costs in a large table are two reads of memory, the second of which needs what the first has found. It
// is kept short, and free of branches that depend on where things lie, so that the beginning of the next one fits into
// what a processor looks ahead. For batches, Prefetch has all first reads go on at once, and then all second ones.
//
// Readers take no lock. A slot has a sequence number, the low bits of which are repeated in its live word beside the
// state; that word is 0 before any other of the slot changes and is written after them. A reader that sees a live
// word of 0 or of another number at the end, or another tuple, takes the slot for none of its own. The words of a
// slot are read through sync/atomic, and those that packets change are written so, counts apart; the constant ones,
// and those of a ledger, are ordered by the sequence number. A slot is whole before the index names it, and the index
// forgets it before it is emptied. What a packet changes (last seen, state, counts) may change under one number: last
// seen is a plain store once per second and flow; the state is exchanged together with the number, so that a late
// reader cannot touch a successor.
//
// Writers (insert, delete, expiry) lock the stripes of both keys, in order. Keys with one hash share a stripe, which
// makes insertion atomic for both; keys of a bucket are claimed by compare-and-swap, as stripes share buckets.
//
// The key space is one: a tuple is in the table once, be it the original of one flow or the reply of another. When the
// reply tuple of a new flow is taken (one client port to two Services over one backend), another source port is found.
//
// # Whose flow goes
//
// Each flow is charged to its owner, who began it. When the table is full, package share says whose flow makes room
// for a new one: that of the owner with the most, if that one has more than the new flow's owner; otherwise one of
// its own. So nobody's flows, whatever their state, cost those of an owner with fewer; and the node itself and
// clients from outside have a reserve. Package slots keeps who has which slots. It names some of that owner's at
// random, and of those goes the one whose time is over, or one of the client who has many more than others, or the
// cheapest: ended, unanswered and long idle ones before established connections; among equals, the one that has been
// idle for longest. A search is bounded, and sees a flow that is worth keeping once, as long as its owner has others.
//
// # Being killed
//
// SIGKILL may fall between any two stores. A slot whose sequence is odd, whose state word was not written under its
// sequence, or whose sum over the constant words does not fit is discarded by Open, and counted. Generations of the
// caller's tables (Checked) mean nothing to the next process and are reset. Times are of the boot-time clock.
// One process writes at a time: the lease of the keeper, not this package, sees to it.
//
// # Versions of the memory
//
// The memory is of version 2. An agent reads every version up to its own: it converts what it finds into new memory,
// which takes the place of the old (Serves, Convert); so an upgrade costs no flow. An older agent does not know newer
// memory and formats it anew: a downgrade costs all flows. Version 1 had no ledgers; who began its flows,
// Options.Owner has to say.
//
// What the next version may change, and how:
//
//   - The header's words mean the same in all versions and never move. There is room for more after them, which is 0.
//   - A ledger's spare word and the bits of a slot's meta from 17 on are 0, which will mean that nothing is known.
//     They go into the sum. So an agent may give them a meaning without a new version, if they stay constant while
//     the flow lives: one that does not know it keeps them and the flow.
//   - Everything else is a new version: the hash, the sum, one more state. Its agent keeps a frozen reader of each
//     version before (records; v1.go is one) that depends on no constant of its own, with an image made by an agent
//     of that version as its test (testdata). No version is ever forgotten.
//
// # Time
//
// The clock is read once per second by Run (or by each Sweep), which also walks one sixtieth of the slots and frees
// what has expired. An entry past its time is a miss even before it is swept. Above nine tenths of the capacity Sweep
// applies shorter times to owners who have more than an equal share.
//
// The package is longer than others: whatever reads or writes a slot has to know of all who do so at the same time.
package flow
