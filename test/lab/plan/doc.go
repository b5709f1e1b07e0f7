// Package plan plays the control plane of a lab. It fills in what an API server would, gives Nodes, Pods and Services
// their addresses and ports, schedules pods, and derives the EndpointSlices. It does no input or output: objects and
// the state of the pods go in, complete objects and what is to run come out.
package plan
