// Package flowlog keeps what has lately happened to flows: a Record for each event, in a ring of a fixed number of
// records. It stands beside the packet path and never in its way: to write a record takes no lock, allocates nothing
// and waits for nobody, whether there are readers or not.
//
// # The ring
//
// A writer takes the next position by one atomic addition, and so a slot: the position modulo the number of slots. A
// slot's state says of which position its record is, and whether that is still being written. The writer claims the
// slot by changing the state, writes the record's words, and changes the state again.
//
//	position  ... 12   13   14   15   16            the slot of 16 is that of 12, whose record is lost then
//	state         done done done writing -
//
// A reader copies a record and then looks at the state once more. If that has changed, the copy may be torn, and is
// thrown away. The record is lost to this reader, who counts it: whoever is too slow loses the oldest records.
//
// A writer that the kernel does not run for a whole turn of the ring finds its slot taken, or is in the way of another
// one. Then the record of one of the two is missed: it is counted, and the readers count it as lost.
//
// A record is as long as 30 words, and its last nine hold a name, which are written only if there is one. They are
// plain stores, since an atomic one costs as much as ten of them; the state orders them, as package flow has it.
//
// # Time
//
// Records have the time of a monotonic clock. It becomes a date when a record is read, so that it agrees with the clock
// on the wall also after somebody has set that.
package flowlog
