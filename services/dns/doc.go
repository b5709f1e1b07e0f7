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
// Forwarding hands the message on and the answer back over the transport that the client uses, with its EDNS options.
// Upstreams are asked in order, those that fail last (upstreams). What is scarce is charged to the address that asks,
// by the rule of package share: questions that wait for an upstream (forwarder), and TCP connections (conns). A client
// that asks for what nobody answers, or holds connections and says nothing, loses its own; others notice nothing.
// Questions that are the same but for the id and the spelling of the name are asked once.
//
// An upstream is judged by what it answers and not by what it does not: one name may have no server that works, and
// anybody may ask for that one. When it was silent to everybody for a while it is probed, with a question that every
// server can answer, and fails until it answers something.
//
// Forged answers. A forger who does not see the question has to guess the port of a socket that is used once, the id, and
// the spelling of the name (ask); what does not fit is passed over and counted, and the right answer is still waited for.
// After a few that do not fit, the upstream is asked over TCP, as it is when an answer is truncated or in another
// spelling. Upstreams that do not keep the spelling are found out by that, and are trusted without.
//
// An upstream that forwards to this server would multiply every question: each new one is sent a name made up for it,
// and when that name arrives here, the upstream is left alone.
package dns
