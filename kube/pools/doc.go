// Package pools assigns addresses of AddressPools to Services of type LoadBalancer. It is a pure function of the
// objects: what a Service has already is in its status, so whoever decides may be ended and replaced at any time.
//
// # What is decided
//
// First, each Service keeps what it has, the oldest Service first. An address is taken from a Service only when the
// Service asks for other addresses or another pool, no longer asks for its family, or when an older Service has the
// address and was not given it together with this one. A pool that shrinks, or that no longer selects the Service,
// takes nothing away, and neither does a sharer that changes its key.
// Then, Services that lack an address get one. The oldest come first again, so that a newcomer gets only what others
// leave.
//
// A pool of nodes has no addresses of its own. Its Services are at the addresses of all of its nodes, and that list
// follows the nodes. A Service port is at one Service at a time there.
//
// # Who may write what
//
// Whoever may write AddressPools decides who gets which addresses: an address is given, asked for or not, only from a
// pool that selects the Service. Whoever may write a Service asks by its fields and annotations, and can take an
// address from nobody: sharing needs the key of whoever has it, in the same namespace. The status of Services is
// written by controllers alone.
package pools
