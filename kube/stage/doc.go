// Package stage makes the pods and Services of a test in a cluster, runs commands in the pods, and removes everything
// again. Its caller decides which questions the commands ask, and what the answers mean.
//
// A Stage is one namespace with a generated name. Its pods run the image of the cluster's own agents unless the options
// name another:
//
//	pod          where                       what it does
//	client       first node                  asks
//	near         first node                  runs the built-in server, behind the Services near and both
//	far          second node, if any         runs the built-in server, behind the Services far and both
//	host         first node, host network    asks, as a process of the node would
//
// A node affinity binds each pod to its node. So the scheduler still takes part, and reports taints that keep a pod
// away.
package stage
