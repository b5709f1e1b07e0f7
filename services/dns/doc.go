// Package dns answers questions about the cluster's zone, according to version 1.1.0 of the Kubernetes DNS
// specification, and forwards every other question to the node's upstreams.
//
// # Theory of operation
//
// Each node answers its own pods. So a question about the cluster never leaves the node, and the answer is as fresh as
// the node's knowledge. A Config says what names lead to. The first question after Set makes an index of it by name
// (view). The index never changes, and answering is a pure function of it. Before the first Config the answer is
// SERVFAIL, because clients would believe an answer that a name does not exist.
//
// The endpoints of a Service with ClusterIPs change all the time, and few of them have names. So the Config holds only
// those with a hostname. A question for another by its address (10-0-0-1.web.default.svc) is answered with the help of
// Options.Serves.
//
// In the zone, a name without records of the type asked for has another answer than a name that does not exist
// (NXDOMAIN). Both answers carry the SOA record, so that resolvers cache them for no longer than ttl. The name of a
// headless Service without a published endpoint does not exist. The target of an ExternalName is looked up too, in the
// zone or at the upstreams, and the answer has the code of the last name (RFC 6604).
//
// A headless Service may have many endpoints. If they do not all fit into the answer, it has a random choice of them. A
// question costs what its answer holds: the names below a Service are sorted out once (byName), and again when the
// Service has changed.
//
// In the reverse zones the Server answers only for known addresses, since private ranges are also used outside the
// cluster.
//
// Every other question goes to the upstreams (package forward). On a TCP connection it delays no question behind it
// (package stream). TCP connections are shared out among clients by the rule of package share: a client that holds
// many idle connections loses them to new clients (share/conns).
package dns
