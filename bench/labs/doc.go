// Package labs brings up labs of Tapestry's own and hands out paths through them as Topologies, to be measured beside
// baselines. A lab is a real cluster on this machine, see package lab: what is measured is the agent as it is
// deployed, a process per node.
//
// The process must be in the user namespace that owns the labs', see userns.
package labs
