// Package superframe makes packets for pods out of datagrams that host sockets receive, for the relays of UDP.
//
// One call reads several datagrams, or several that the kernel has coalesced (UDP_GRO), each to a place with room for
// its headers (Batch). Datagrams of equal size that follow one another and go the same way become one superframe. So
// the pipeline handles them once, and cuts the superframe for pods that cannot accept one. A datagram that is larger
// than its path is sent in fragments.
package superframe
