// Package hostproxy takes processes of the node to the cluster's network where there is no host TAP: a proxy on
// localhost or a Unix socket, for SOCKS5 (RFC 1928, CONNECT without authentication) and HTTP CONNECT (RFC 9110, 9.3.6)
// on one port.
//
// The first byte says which of the two a client speaks: 5 is SOCKS5. Names are resolved in the cluster's zone, and
// nowhere else. What is dialled is an address of the cluster, by Options.Dial: who comes to this proxy can reach the
// outside without it, so it is a way to nowhere else, and of no use to who tricks a process of the node into asking.
//
// Who may use it. Only sockets of this node reach it. Options.UIDs names users; the kernel says whose a connection is
// (SO_PEERCRED of a Unix socket, sock_diag(7) or /proc/net/tcp for TCP). Connections are charged to their user (package
// share): each may have as many as it leaves to others. Who may not come in, or has too many, is reset unheard. A
// client that does not say what it wants is dropped after askTime.
package hostproxy
