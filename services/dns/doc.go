// Package dns answers the cluster's zone, after the Kubernetes DNS specification 1.1.0, and forwards every other
// question to the upstreams of the node.
//
// # Theory of operation
//
// Each node answers its own pods, so a question about the cluster never leaves the node and its answer is as fresh as
// what the node knows. A Config says what names lead to. It is indexed by name (view) at the first question after it
// was set; the index never changes, and answering is a pure function of it. Before there is one the answer is
// SERVFAIL: a name that does not exist would be believed.
//
// Which endpoints serve a Service with addresses is no business of names, and changes all the time. So they are not
// in the Config, apart from those that were given a hostname; who asks for one by its address
// (10-0-0-1.web.default.svc) is answered by asking whoever serves.
//
// In the zone, a name that exists without records of the type asked for is told from one that does not exist
// (NXDOMAIN), and both carry the SOA record, so that resolvers keep them for no longer than ttl. A headless Service
// without a ready endpoint does not exist. The target of an ExternalName is looked up too, in the zone or at the
// upstreams, and the answer has the code of the last name (RFC 6604).
//
// Of the reverse zones only the names of known addresses are ours; private ranges reach beyond the cluster.
//
// Every other question goes to the upstreams (package forward). TCP connections are shared out among clients by the
// rule of package share: one that holds many and says nothing loses them to those who come (share/conns).
package dns
