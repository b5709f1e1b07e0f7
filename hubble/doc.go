// Package hubble shows flows as Hubble does, so that its tools can be used with Tapestry: the commands hubble observe
// and hubble status, and whatever else asks an observer.Observer. The Server knows nothing of where flows come from: Log
// is the Source that reads what an agent tells. No agent serves it yet.
//
// The messages are those of github.com/cilium/cilium/api/v1 (flow, observer), and those of gRPC's health checking. Only
// their numbers are used here: messages are written and read field by field, as protocol buffers are on the
// wire. docs/decisions/0016-hubble-without-its-module.md says why, and test/hubble holds it against the real module.
//
// # What is asked
//
// GetFlows looks through all events that the Source still has, if the last or first ones or those since a time are
// asked for, and then follows. Filters are compiled when they arrive: one that is not known here is refused, since a
// filter that does nothing would show what was not asked for. Field masks are not looked at: every field is sent.
//
// # Bounds
//
// A call costs a goroutine and a Reader, which holds all events of the log when it begins. There are MostCalls at
// once, of which one more is told so; connections beyond MostConnections are closed. A client that reads slowly loses
// the oldest events, and is told how many; one that reads nothing for rpc.Patience is cut off.
package hubble
