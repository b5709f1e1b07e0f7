// Package translate turns the objects of a cluster into the configurations of the data plane, as one node sees them.
// It is pure: it reads no clock, file or network, returns the same Result for the same Objects, and does not change
// the Objects. It leaves out what cannot be used and reports it as a Problem; everything else keeps working.
//
// # Stages
//
// Translator.Translate lists the stages and so defines the package. A stage has a file of its own, and depends on the
// objects it is given, on the stages before it, and on nothing else. It works in two steps. First it parses every
// object by itself. Then it settles, among the parsed objects, what two of them want at once (an address, a node
// port, a path), so the order in which objects are read decides nothing.
//
// # What is remembered
//
// Each step is behind a memo, which identifies its last inputs by pointer. Objects never change, so the same pointer
// leads to the same result and to the same problems. Successive Results share their equal parts, so a receiver finds
// out cheaply that nothing has changed. An empty Translator computes the same as the function Translate; a test
// compares the two over random sequences of snapshots.
//
// The package has more than 1,500 lines because it defines the meaning of every kind of object that is read. Each of
// its files knows only one kind, except those that decide whose an address is (free.go, claims.go, leads.go).
package translate
