// Package translate turns the objects of a cluster into the configurations of the data plane, as one node sees them.
// It is pure: it looks at no clock, no file and no network, gives the same Result for the same Objects, and leaves
// the Objects as they are. What cannot be used is left out and told as a Problem; everything else keeps working.
//
// # Stages
//
// Translator.Translate is the list of the stages and the definition of the package. A stage has a file of its own,
// and is a function of the objects it is given, of the stages before it, and of nothing else. It works in two steps:
// every object is parsed by itself; then whatever two objects want at once (an address, a node port, a path) is
// settled among what was parsed, so that the order in which objects are looked at decides nothing.
//
// # What is remembered
//
// Each step is behind a memo, which knows its inputs of last time by their identity: objects are never changed, so
// the very same object comes to the very same result, and the problems it had are repeated. Results that come out the
// same are shared by the Results that follow one another, so that whoever receives them can tell cheaply that nothing
// changed. An empty Translator is the function Translate; a test compares the two over random sequences of snapshots.
//
// The package has more than 1,500 lines because it is the meaning of every kind of object that is read; none of its
// files knows of more than one kind, those apart that say whose an address is (free.go, claims.go, leads.go).
package translate
