// Package balance chooses one of several servers by what is known of their load. Services use it for the backends of
// new flows, and Ingress for the endpoints of requests. The package is a leaf, which every package may import.
//
// # Methods
//
//	method             who is chosen                                                    what it needs to know
//	hash               the caller's own hash of the client: the default                 nothing
//	maglev             a Maglev table of the caller, by the same hash                   nothing
//	random             anybody                                                          nothing
//	round-robin        the next one                                                     whose turn it is
//	least-connections  of two at random, who has fewer open connections                 connections
//	ewma               of two at random, who answers sooner                             connections, times
//
// Two at random are enough: the fullest of n servers then has about log log n more than the mean, while the least of
// all n would be chosen by all nodes at once, and would cost n cache misses (Mitzenmacher, "The Power of Two Choices in
// Randomized Load Balancing", 2001).
//
// # Time to the first answer
//
// A Load keeps an average of how long its server took to answer, which follows a slower answer at once and quicker ones
// with the time constant memory ("peak EWMA"). It is multiplied by one more than the connections that wait for their
// first answer, so that a server that has stopped answering is avoided before the first wait is over. A server that was
// not asked is forgotten slowly, so that it gets another try. A refusal counts as RefusedTime, since nobody answers as
// quickly as a server that refuses everything.
//
// # After a rollout
//
// A server that is new has no connections and no times, and would get everything. So for slowStart it counts as a part
// of a server that grows from leastPart to the whole. Servers that were there when the process began are not new.
//
// # What is known where
//
// Each node knows what its own clients do, and no more: nodes exchange nothing. An agent that begins again finds the
// open connections in the memory of its flows, and learns the times anew.
package balance
