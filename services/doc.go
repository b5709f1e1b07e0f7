// Package services turns the Services of a cluster into an immutable Table of frontends and backends and chooses the
// backend of every new flow.
//
// # Theory of operation
//
// A Config says everything about the Services of a cluster as one node sees them. NewTable compiles it once into a
// Table that never changes; whoever holds the current Table swaps in a new one, and flows survive, because a flow
// keeps the identity of its backend and asks Backend what became of it, and Leads whether its frontend still means it.
//
// From one Table to the next. Every Service is compiled by itself, to a unit. Update takes over the units of Services
// that are the same, and when no frontend has changed also the index that finds them; what is known of backends lies
// in 256 parts, of which those with a change are copied. So among 10,000 Services a new endpoint costs its own
// Service and a comparison of the lists, which share most of their memory with those of before.
//
// Finding a frontend. Two hash tables: one of address, port and protocol, and one of every address that is anything
// special. NodePorts stand in the first once per family of their Service, not once per node. What is in neither costs
// two lookups and the comparison with the service ranges.
//
//	address is ...              port known      port unknown
//	cluster DNS                 53: ToStack   ICMP: ToStack, others as below
//	ClusterIP, ExternalIP       choose          UnknownPort
//	a node's                    choose          NotFrontend: the node's own business
//	within a service range      -               UnknownPort
//	anything else               -               NotFrontend
//
// Host ports of this node's pods stand beside, by address or for all addresses of a family, and only this node has
// them: its own pods, clients of its sockets (PickOnHost) and what the Link brings for its addresses find them. A
// NodePort of that number wins.
//
// Which endpoints. Select is the rule, one pure function, for packets and for whoever makes connections of his own to
// a ServicePort (Endpoints). A ClusterIP follows the internal traffic policy; NodePorts and ExternalIPs follow the
// external one, except for clients inside the cluster, for whom that is Cluster at this node's addresses, and the
// other node's own endpoints at another node's (setAt). An empty set refuses the client (NoEndpoints), unless only
// the Local policy made it empty (DropLocal): then the client is to try another node, and silence is what the health
// checks of load balancers and kube-proxy agree on.
//
// Which backend. The choice is a pure function of the client's address, the two ports, the protocol and the set of
// backends: not of their order, not of the frontend's address, not of the past. Up to rendezvousMax backends every
// one is weighed (rendezvous hashing); beyond, a Maglev table is built, whose lookup takes the same time for any
// size. Both move few flows when the set changes by one: rendezvous only those of the backend that left, Maglev about
// one percent more. A set that grows or shrinks past rendezvousMax is dealt anew. None of this moves a flow that the
// flow table knows.
//
// Session affinity. With ClientIP affinity the client's address alone is hashed. Hence affinity holds on every node
// and over restarts, as long as the set of backends stays the same; when the set changes, a client whose backend
// stays may be moved only within the bounds above. What is remembered is when a client came last (sessions): after
// the Service's timeout without a new connection its next session is dealt anew. Who was forgotten has the backend of
// a first session.
//
// Identity. A backend's id is 64 bits: the upper 40 a hash of the pod's UID and address, the lower 24 a hash of the
// Service port and target port. So a reused address gets another id; two Services over one pod are told apart (one
// may drop the pod while the other keeps it); and the upper part alone shows that a pod still lives though no Service
// leads to it any longer, in which case its connections may end in peace (BackendDraining).
//
// The package has more than 1,500 lines because making, asking and showing a Table share what it consists of.
package services
