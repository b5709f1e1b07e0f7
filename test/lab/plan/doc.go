// Package plan is the part of a lab that a control plane is in a cluster: it fills in what an API server would, gives
// Nodes, Pods and Services their addresses and ports, schedules, and derives the EndpointSlices. It does no input or
// output: objects and the state of the pods go in, complete objects and what is to run come out.
package plan
