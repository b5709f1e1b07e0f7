// Package e2e proves the whole of Tapestry on real namespaces: the steps of the demo, what is done about bad input and
// hostile packets, faults, what a dead or a deaf one does to others, a soak, and the command line as a user sees it.
//
// The test binary plays every program: it is the tapestry executable of its labs, with its agents and servers, and the
// helpers that the tests run inside of pods and nodes. It runs as root and as an ordinary user; where an ordinary user
// cannot do what a test is about, the test asserts what holds instead, and nothing is skipped.
package e2e
