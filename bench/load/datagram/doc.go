/*
Package datagram is the load generator's part that is sent over UDP: its wire format, a sender, and a server that counts what
arrives or answers it.

# Theory of operation

A client asks for a stream on a connection of its own (package load, over TCP), and so learns its number, which is random.
Every datagram begins with the number and a sequence number; the rest has no meaning. The server counts or answers only
datagrams of open streams, and answers with the size agreed on: strangers get nothing, nobody can be made to flood somebody else.

Sender and server use sendmmsg(2) and recvmmsg(2): a system call moves up to Batch datagrams. They do not use UDP_SEGMENT: as many
packets as are counted go through every layer.
*/
package datagram
