// Package flow is the flow table: it remembers for every connection both of its tuples, the backend that was chosen for
// it and how far it has come, so that translation is decided once and applied to every later packet of either direction.
//
// # Theory of operation
//
// The entries live in memory which the caller gives, a shared memfd held by the keeper as a rule, and so survive the
// death of the process. That memory starts with a header (magic, version, layout sizes, hash seed) and goes on with an
// array of slots of 128 bytes. It holds no pointer, no lock and no index of anything outside. Everything else is private
// to the process and made anew by Open: the index, the list of free slots, the locks and the counters.
//
//	shared   | header | slot 0 | slot 1 | ...            both tuples, backend, via, kind, state, last seen
//	private  | bucket 0 | bucket 1 | ...                 64 bytes, room for 12 keys; two keys for each flow
//
// A bucket is one cache line: twelve tags of 8 bits, twelve keys (a slot number, a direction, six more bits of the tag),
// and 32 bits that count the keys which belong here and had to go to one of the next buckets. A lookup hashes the tuple,
// reads the line of its home bucket, compares all tags at once and for a key that fits reads the slot (two adjacent
// lines). Only where keys had to go on, or a tag was another key's, does it look further, one time in 30 when the table
// is full; practically never does it read a slot in vain.
//
// What a lookup costs in a large table are two reads of memory, the second of which needs what the first has found. It
// is kept short, and free of branches that depend on where things lie, so that the beginning of the next one fits into
// what a processor looks ahead. For batches, Prefetch has all first reads go on at once, and then all second ones.
//
// Readers take no lock. A slot has a sequence number, the low bits of which are repeated in its live word beside the
// state; that word is 0 before any other of the slot changes and is written after them. A reader that sees a live word of
// 0 or of another number at the end, or another tuple, takes the slot for none of its own. Every shared word is read and
// written through sync/atomic. A slot is whole before the index names it, and the index forgets it before it is emptied.
// What a packet changes (last seen, state) may change under one number: last seen is a plain store once per second and
// flow; the state is exchanged together with the number, so that a late reader cannot touch a successor.
//
// Writers (insert, delete, expiry) lock the stripes of both keys, in order. Keys with one hash share a stripe, which
// makes insertion atomic for both; keys of a bucket are claimed by compare-and-swap, as stripes share buckets.
//
// The key space is one: a tuple is in the table once, be it the original of one flow or the reply of another. When the
// reply tuple of a new flow is taken (one client port to two Services over one backend), another source port is found.
//
// # Being killed
//
// SIGKILL may fall between any two stores. A slot whose sequence is odd, whose state word was not written under its
// sequence, or whose sum over the constant words does not fit is discarded by Open, and counted. Generations of the
// caller's tables (Checked) mean nothing to the next process and are reset. Times are of the boot-time clock.
// One process writes at a time: the lease of the keeper, not this package, sees to it.
//
// # Time
//
// The clock is read once per second by Run (or by each Sweep), which also walks one sixtieth of the slots and frees what
// has expired. An entry past its time is a miss even before it is swept. Above nine tenths of the capacity Sweep applies
// shorter times, and Insert into a full table evicts what is closing or was never answered, but nothing else.
package flow
