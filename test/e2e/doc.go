// Package e2e tests all of Tapestry in real namespaces: the steps of the demo, bad input and hostile packets, faults,
// the effects of a dead or stuck process on others, a soak, and the command line as a user sees it.
//
// The test binary is every program in turn: the executable tapestry of its labs, with agents and servers, and the
// helpers that the tests run inside of pods and nodes. The tests run as root and as an ordinary user. Where an ordinary
// user cannot do what a test is about, the test asserts what holds then. No test is skipped.
package e2e
