// Package services compiles the Services of a cluster into an immutable Table of frontends and backends, and chooses
// the backend of every new flow.
//
// # Theory of operation
//
// A Config describes all Services of a cluster as one node sees them. NewTable compiles a Config into a Table that
// never changes. The holder of the current Table replaces it with a new one when the Config changes. Flows survive
// the replacement: a flow remembers the id of its backend, asks Backend for the backend's present state, and asks
// Leads whether its frontend still belongs to the same Service port.
//
// Updates. Each Service is compiled by itself into a unit. Update reuses the units of unchanged Services, and reuses
// what is known of frontends when no frontend has changed. Services, units and the states of backends are kept in lists
// and maps of package roll, of which successive Tables share nearly all. So one endpoint among 50,000 Services costs
// the compilation of its own Service, as among 10. A Service with very many endpoints has them in parts, which are
// compiled by themselves, so that one endpoint costs its part.
//
// Finding a frontend. There are two hash tables: one by address, port and protocol, and one by address for all
// addresses with a special meaning. A NodePort is in the first table once per family of its Service, not once per
// node. A destination in neither table costs two lookups and a comparison with the service ranges.
//
//	address is ...              port known      port unknown
//	cluster DNS                 53: ToStack     ICMP: ToStack, others as below
//	ClusterIP, ExternalIP       choose          UnknownPort
//	a node's                    choose          NotFrontend: the node handles it
//	within a service range      -               UnknownPort
//	anything else               -               NotFrontend
//
// The hostPorts of this node's pods are kept in a separate table, by address or for all addresses of a family. Only
// this node has them. They serve this node's pods, clients of this node's sockets (PickOnHost), and packets that the
// Link brings for this node's addresses. A NodePort with the same number takes precedence.
//
// Which endpoints. Select is the rule: one pure function, used for packets, and (by way of Endpoints) for callers that
// connect to a ServicePort themselves. A ClusterIP follows the internal traffic policy. NodePorts and ExternalIPs
// follow the external policy. If that is Local, clients inside the cluster are an exception: at this node's addresses
// they get any endpoint of the cluster, and at another node's address they get that node's own endpoints (setAt). An
// empty set refuses the client (NoEndpoints), unless only the Local policy made it empty (DropLocal). DropLocal
// answers nothing, so that the client tries another node; kube-proxy does the same, and health checks of load
// balancers expect it.
//
// Which backend. The choice is a pure function of the client's address, the two ports, the protocol and the set of
// backends. It does not depend on the order of the backends, on the frontend's address, or on earlier choices. Up to
// rendezvousMax backends are all weighed (rendezvous hashing). Larger sets get a Maglev table, whose lookup takes the
// same time for any size. It depends on the pods alone, so the ports of a Service that the same pods serve share one.
// Sets of more than maglevMax get a tree, of which one backend changes a few nodes. All move few flows when one backend
// is added or removed: rendezvous hashing moves only the flows of the removed backend, Maglev moves about one percent
// more, a tree the flows of about twenty backends. A set that grows or shrinks past rendezvousMax or maglevMax
// distributes all flows anew. None of this moves a flow that the flow table knows.
//
// Other choices. Service.Balance names another way to choose, which package balance implements. Such a choice depends
// on what flows do, so it is not the same on all nodes, and a flow whose entry is lost is not found again by it. The
// State that Tables share has the Loads of backends, by their ids; the compiled Service holds those that it needs.
//
// Session affinity. With ClientIP affinity a client keeps its backend at a Service port, while others come and go,
// until it has begun no connection for the Service's timeout or the backend may not be chosen any more. Package
// affinity remembers this, with the rules of kube-proxy; all frontends of the Service port share the memory. A client
// without a session gets the backend of a hash that covers only its address. So all nodes agree on a client's first
// backend, across restarts too, while the set of backends stays the same.
//
// Leaving. Other nodes choose an endpoint for a while after this node knows that it terminates. Steer chooses another
// one for such a connection. Package leaving remembers the endpoints of this node and how they stand, for a minute
// longer than the Service has them.
//
// Identity. A backend's id has 64 bits. The upper 40 are a hash of the pod's UID and address, the lower 24 a hash of
// the Service port and target port. So a reused address gets another id. Two Services over one pod have different
// ids, because one may drop the pod while the other keeps it. The upper part alone shows that a pod still lives
// although no Service leads to it; its connections then continue until they end (BackendDraining). An
// endpoint without a pod is known by its address alone. When it leaves its Service, its connections continue as well,
// since only it can tell whether it lives (KEP-1669).
//
// The package has more than 1,500 lines because compiling, querying and printing a Table all need its internal layout.
package services
