// Package forward asks the DNS servers of a node what its own zone does not answer.
//
// # Theory of operation
//
// Exchange hands the message on and the answer back, over the transport that the client uses and with its EDNS
// options. Upstreams are asked in order, those that fail last.
//
// Shares. A question that waits is charged to the address that asks, by the rule of package share. A client that asks
// for more than there may be loses its own oldest questions, and others notice nothing. Questions that are the same
// but for the id and the spelling of the name are one flight, which is asked once; it goes on while somebody waits for
// it.
//
// Who works. An upstream is judged by what it answers and not by what it does not: one name may have no server that
// works, and anybody may ask for that one. When it was silent to everybody for a while it is probed, with a question
// that every server can answer, and fails until it answers something.
//
// Forged answers. A forger who does not see the question has to guess the port of a socket that is used once, the id,
// and the spelling of the name. What does not fit is passed over and counted, and the right answer is still waited
// for. After a few that do not fit, the upstream is asked over TCP, as it is when an answer is truncated or in another
// spelling. Upstreams that do not keep the spelling are found out by that, and are trusted without.
//
// Loops. An upstream that forwards to this server would multiply every question: each new one is sent a name made up
// for it, and when that name arrives here (IsProbe), the upstream is left alone.
//
// Locks. Forwarder.mu guards the flights, upstreams.mu what is known of upstreams; neither is held while anything is
// dialled, read or written.
package forward
