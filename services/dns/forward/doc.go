// Package forward asks the node's DNS servers the questions that the cluster's own zone does not answer.
//
// # Theory of operation
//
// Exchange passes the message to an upstream and the answer back. It uses the client's transport and keeps the
// client's EDNS options, but not its size: upstreams are asked for datagrams of UDPSize, and whoever uses the Forwarder
// cuts the answer for the client. A server that does not know EDNS is asked again without it. Upstreams are asked in
// order; failing ones come last.
//
// Shares. A waiting question is charged to its client, by the rule of package share. A client with too many questions
// loses its own oldest ones, and other clients are not affected. Questions that differ only in the id and in the
// spelling of the name form one flight, which is asked once. It continues while somebody waits for it.
//
// Which upstreams work. An upstream does not fail because it leaves a question unanswered: a name may have no working
// server, and anybody may ask for that name. If an upstream has answered nothing at all for a while, it gets a probe,
// a question that every server can answer. If the probe stays without an answer, the upstream is failing until it
// answers anything.
//
// Forged answers. A forger who does not see the question has to guess three things: the port of a socket that is used
// once, the id, and the spelling of the name. An answer that does not match is ignored and counted, and the right
// answer is still waited for. After a few wrong answers, the upstream is asked over TCP. This also happens after a
// truncated answer, after an error that does not repeat the question, and after an answer in another spelling. In this
// way upstreams that do not keep the spelling are detected, and their answers are then accepted in any spelling.
//
// Loops. An upstream that forwards to this server would multiply every question. So each new upstream is asked for a
// name made up for it. If that name arrives here (IsProbe), the upstream is not used.
//
// Locks. Forwarder.mu guards the flights, upstreams.mu guards what is known of upstreams. Neither is held while
// something is dialled, read or written.
package forward
