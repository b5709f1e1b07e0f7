// Package nodeport listens on the host for NodePorts and for hostPorts of pods. It passes what arrives to the backends
// that the Service Table chooses, from the client's own address.
//
// # Theory of operation
//
// Set takes the complete list of ports to listen on. A port has one socket per address family. Each socket has a
// goroutine that binds and serves it. If another program holds the port, the goroutine tries again with growing pauses.
// A socket that is no longer wanted is closed. TCP connections that came through it continue until their ends close
// them. The Listener may keep sockets for the next Proxy: Release says which of them are over.
//
// Which sockets. A socket is open only if it can serve clients. Then the kernel refuses all other clients at once (a
// reset for TCP, port unreachable for UDP), and a client of the other family falls back. Ports computes the list. There
// is no socket in a family that the Service lacks, and IPv6 sockets serve only IPv6. A NodePort without a backend has
// no socket until there is one. If the traffic policy is Local and this node has no backend, only loopback has a
// socket, since the node's own processes are inside the cluster; load balancers are refused, and use other nodes.
// Another program may take a port while it has no socket. When a backend appears then, the port is a Problem, and is
// tried again until the program releases it.
//
// Each client becomes a Tuple of its address and port, the node's (or the load balancer's) address, and the port. Pick
// returns a backend, and Dial connects to the backend from the client's address, so that the pod sees its client.
// Clients on this host (loopback and link-local addresses) have no address that a pod could answer. They get the node's
// address and any free port instead. Clients with an address of a pod or a Service are refused, since nobody outside
// has such an address.
//
// TCP. A client that arrives after the last backend is gone, but before the socket is closed, is reset and not closed,
// since an orderly close would look like an answer. Both directions are copied until both have ended. The end of one
// direction is passed on as a half-close. A failure is passed on as a reset, after the data that the failed end had
// sent before.
//
// Where clients are accepted. The Accept option has a listener's clients accepted where TAPs are read, and a client
// whose turn comes at once is joined to its backend there (adopt): no goroutine is woken for it, then or later. Without
// it, and for clients that wait or are not joined, there is a goroutine for each.
//
// The end. Connections that Join and Adopt carry may outlive the Proxy, the others end with it. Drain lets those
// finish, and stops only sockets of the PROXY protocol, all of whose connections are such. Close resets what has not
// finished.
//
// Opening in turn. To open a connection to a backend costs much more than to accept a client, who may reset it at once.
// So accepted clients wait in a line in which each client's network has its turn after the others (openings), and for
// one that has been reset meanwhile nothing is opened. Few are opened at once, so that whoever accepts does not wait
// behind them, and one whose backend keeps it waiting does not count for long while others wait.
//
// UDP. There is one session per client and local address. A Door carries the datagrams, and asks whose they are once
// for all that came together from one client. A session has an exchange of the Door or, for a backend that the kernel
// reaches, a connected socket and a goroutine for the replies. Replies leave from the local address to which the client
// wrote (IP_PKTINFO), unless that was a broadcast or multicast address. Whenever the Door asks, the session must stay:
// its backend must serve, and the port must lead to the same Service port. If not, or if the backend has refused, the
// session ends and a backend is chosen anew. Sessions end when they are idle, and when their socket closes, since no
// reply could leave without it. When there are too many sessions, clients share them (guests).
//
// The next Proxy goes on with the sessions of this one, if it is given memory for them (memory): with their backends,
// and the ports at which those see their clients. A session that ends before the Proxy does is forgotten.
//
// Fair shares. UDP sessions, and TCP connections that Dial makes, are charged to the client's address
// (addressing.Client, package share). Each such connection holds two descriptors, and a dialled session one.
//
// Locks. Proxy.mu guards the sets of ports and connections, server.mu the sessions of one socket, guests.mu the order
// of all sessions. None is held while something is read, written or dialled.
//
// The package has more than 1,500 lines because TCP and UDP share the sockets, the limits and the choice of a backend.
package nodeport
