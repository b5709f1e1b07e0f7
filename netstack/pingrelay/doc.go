// Package pingrelay carries pods' echo requests to the outside over the host's ping sockets (icmp(7)).
//
// There is one socket for each address and identifier of a pod and each address outside that it pings. The kernel gives
// each socket an identifier of its own and delivers replies by it. The kernel also reports ICMP errors. They are passed
// to the pod as errors about its own request, from their own senders. TTL and traffic class are passed on in both
// directions. An echo reply larger than the pods' MTU is sent to the pod in fragments.
//
// Sockets are divided among pods by package share: a pod that pings with ever new identifiers loses its own sockets,
// the longest idle one first. A socket ends after it has been idle for Options.Idle. A poll.Poller watches the sockets,
// so none has a goroutine.
package pingrelay
