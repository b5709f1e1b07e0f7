// Package pingrelay carries pods' echo requests to the outside over the host's ping sockets (icmp(7)).
//
// A socket is one address and identifier of a pod pinging one address outside. The kernel gives each an identifier of
// its own, sorts what arrives by it, and hears ICMP errors, which are told to the pod as errors about its own request,
// in the name of who sent them. TTL and traffic class are passed on in both directions.
// An echo larger than the pods' MTU goes back in fragments.
//
// Sockets are shared out among pods by package share: a pod that pings with ever new identifiers loses its own, the one
// idle for longest first. They end when they are idle for Options.Idle. There is no goroutine for each: a poll.Poller
// watches them.
package pingrelay
