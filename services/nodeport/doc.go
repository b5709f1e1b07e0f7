// Package nodeport listens on the host for NodePorts and hostPorts of pods, and passes what arrives on to the
// backends that the Service Table chooses, from the client's own address.
//
// # Theory of operation
//
// Set gives the ports to listen on, all of them each time. A port is one socket per address family, each with a
// goroutine of its own that binds it, again and again with growing pauses when somebody else has it, and serves it. A
// socket that is no longer wanted is closed; TCP connections that came through it go on until their ends close them.
//
// Which sockets. A socket is there where somebody would be served, so that the kernel refuses at once whoever would
// not (a reset for TCP, port unreachable for UDP), and a client of the other family falls back. Ports says what that
// comes to: a family that the Service lacks has no socket, and sockets of IPv6 are for IPv6 alone. A NodePort without
// a backend has none until there is one. Where a Local traffic policy has no backend here, loopback is left, since the
// node's own processes are inside the cluster: load balancers are refused, and go to other nodes. A port that is not
// listened on is anybody's: when another program has it by the time a backend is there, that is a Problem, and the
// port is tried again until the program gives it up.
//
// Every client becomes a Tuple: its own address and port, the node's address (or the load balancer's) and the port.
// Pick answers with a backend, and Dial connects to that one from the client's address, so that the pod sees who it is
// talking to. Clients on this host (loopback and link-local addresses) have no address that a pod could answer to:
// they become the node's address, with whatever port is free. Clients that claim an address of a pod or a Service are
// turned away: nobody with such an address comes from outside.
//
// TCP. A client that comes just as the last backend goes, before the socket is closed, is reset, not closed, for an
// orderly close would look like an answer. Both directions are copied until both are at their end; the end of one is
// passed on as a half-close, a failure as a reset, behind what the end that failed had said before.
//
// UDP. One session per client and local address: a connected socket in the cluster and a goroutine for the replies,
// which leave from the local address that the client wrote to (IP_PKTINFO), if that names one host. Before each
// datagram the session's backend is looked at, and one that is not ready is left for a fresh choice. Sessions end when
// idle. When there are too many, clients share them (guests). They end with their socket, too: without it no reply could
// leave.
//
// Fair shares. What a client takes is charged to its address (addressing.Client, package share): UDP sessions, and
// connections that Dial makes, each of which has two descriptors.
//
// Locks. Proxy.mu guards the set of ports and connections, server.mu the sessions of one socket, guests.mu the order of
// all; none is held while anything is read, written or dialled.
package nodeport
