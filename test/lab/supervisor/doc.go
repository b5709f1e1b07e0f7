// Package supervisor is the process behind a lab. It makes the namespaces of nodes and pods and the network between the
// nodes. It runs the product on the nodes, runs the pods' containers, plays scheduler, kubelet and endpoint controller,
// and carries out clients' requests.
//
// # Theory of operation
//
// The supervisor is started inside network, mount and PID namespaces of its own, and without root in a user namespace
// of its own (package userns). Nothing that it makes has a name outside of them. A descriptor holds a network
// namespace, the descriptors of its queue hold a TAP, and the PID namespace holds the processes. The kernel therefore
// takes everything down when the supervisor ends, however it ends.
//
//	supervisor's namespace         bridge "underlay" -- port1 -- port2 -- port3
//	                                                      |        |        |
//	one for each member                                 eth0     eth0     eth0
//	                                                  outside   node n1  node n2
//	                                                             | keeper, agent, tapestry0
//	one for each pod                                           eth0 (TAP)
//
// Three kinds of loop share the work. Each has state of its own:
//
//   - Run's loop is the control plane. When the files change, it reads them, makes a plan (package plan) and applies
//     the plan as a whole or not at all. When a pod changes, it writes the objects again. Agents see nothing else of
//     the lab.
//   - The kubelet (package kubelet) has a goroutine for each pod, and one for each container that waits for its end.
//   - Each keeper and each agent has a goroutine that starts it again. Each agent also has one that asks it for its
//     state.
//
// The loops share lab.mu and lab.kick. lab.mu is never held over input or output, except that of an impairment. Through
// lab.kick the other loops tell Run's loop that something changed. The end of a container is known to its goroutine at
// once, and a millisecond later it shows in the EndpointSlices on disk.
//
// # What lives where
//
// A node runs the executable tapestry, as in a cluster: "tapestry keeper", then the step "tapestry host-tap", which
// makes the host TAP and needs NET_ADMIN for it, then "tapestry agent". Keeper and agent have no capability.
//
// The supervisor makes a pod's TAP and hands it to the agent. The agent hands a duplicate to the keeper before it says
// that the pod is attached. Then the supervisor closes its own descriptor. When an agent dies the TAPs stay, frames
// wait in them, and the next agent gets them from the keeper. When a keeper dies, the agent gives everything back to
// the next one.
//
// # Commands
//
// No client enters a namespace. The supervisor starts every process itself, through a shim (package shim) that mounts
// the pod's own /etc/resolv.conf and /etc/hosts and then becomes the command. With its request a client sends the
// descriptors of its standard streams, or a terminal, so the bytes never pass through the supervisor.
package supervisor
