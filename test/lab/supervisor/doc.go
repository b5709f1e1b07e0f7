// Package supervisor is the process that is a lab: it makes the namespaces of nodes and pods and the network between
// the nodes, runs the product on the nodes and the pods' containers, plays scheduler, kubelet and endpoint controller,
// and does what clients ask for.
//
// # Theory of operation
//
// It is started inside network, mount, process and, without root, user namespaces of its own (package userns). Nothing
// it makes has a name outside of them: a network namespace is held by a descriptor, a TAP by the descriptors of its
// queue, a process by the process namespace. So the kernel takes everything down when the supervisor ends, in whatever
// way.
//
//	supervisor's namespace         bridge "underlay" -- port1 -- port2 -- port3
//	                                                      |        |        |
//	one for each member                                 eth0     eth0     eth0
//	                                                  outside   node n1  node n2
//	                                                             | keeper, agent, tapestry0
//	one for each pod                                           eth0 (TAP)
//
// Three loops share the work, each with state of its own:
//
//   - Run's loop is the control plane. A change of the files is read, planned (package plan) and applied as a whole or not at
//     all. A change of a pod makes it write the objects again, which is all that agents ever see.
//   - The kubelet (package kubelet) has a goroutine for each pod, and for each container one that waits for its end.
//   - Each keeper and each agent has one that starts it again, and an agent one that asks it how it is.
//
// They meet in lab.mu, which is never held over input or output, apart from that of an impairment, and in lab.kick, by
// which the latter two tell the first that something changed. A pod's container that ends is known to its goroutine at
// once, and a millisecond later the EndpointSlices on disk say so.
//
// # What lives where
//
// What a node runs is the executable tapestry, as in a cluster: "tapestry keeper", then the step "tapestry host-tap",
// which makes the host's TAP and has to have NET_ADMIN for it, then "tapestry agent". Keeper and agent have no
// capability.
//
// A pod's TAP is made here, handed to the agent, who hands a duplicate to the keeper before it says that the pod is
// attached; our own is closed then. When an agent dies the TAPs stay, frames wait in them, and the next agent gets
// them from the keeper. When a keeper dies, the agent gives the next one everything back.
//
// # Commands
//
// Neither a client nor anybody else enters a namespace: the supervisor starts every process itself, as a shim (package
// shim) that mounts the pod's own /etc/resolv.conf and /etc/hosts and then becomes the command. A client sends the
// descriptors of its standard streams, or a terminal, along with its request, and the bytes never pass through here.
package supervisor
