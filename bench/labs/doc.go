// Package labs brings up labs of Tapestry and returns paths through them as Topologies, which are measured beside
// baselines. A lab is a real cluster on this machine (package lab), so what is measured is the agent as it is deployed,
// one process per node.
//
// The process must be in the user namespace that owns the labs' namespaces; see package userns.
package labs
