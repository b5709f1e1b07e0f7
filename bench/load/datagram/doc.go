/*
Package datagram is the part of the load generator that uses UDP: the wire format, a sender, and a server that counts or
answers what arrives.

# Theory of operation

A client asks for a stream over a TCP connection (package load), and learns the stream's number, which is random. Every
datagram begins with this number and a sequence number; the rest has no meaning. The server counts or answers datagrams
of open streams only, and its answers have the size agreed on. A client without a stream gets no answer, so nobody can
use the server to flood somebody else.

Sender and server use sendmmsg(2) and recvmmsg(2), which move up to Batch datagrams in a system call. They do not use
UDP_SEGMENT, so that each counted packet goes through every layer by itself.
*/
package datagram
