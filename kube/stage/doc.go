// Package stage puts the pods and Services of a test into a cluster, runs commands in those pods, and takes everything
// away again. What is asked and what the answers mean is its caller's business.
package stage

// A Stage is one namespace with a generated name. In it are, from the image of the cluster's own agents unless another
// is named:
//
//	pod          where                       what
//	client       first node                  asks
//	near         first node                  the built-in server, behind the Services near and both
//	far          second node, if there is    the same, behind far and both
//	host         first node, host network    asks, as a process of the node would
//
// Pods are bound to their nodes by an affinity, so that the scheduler has its say and taints are told as such.
