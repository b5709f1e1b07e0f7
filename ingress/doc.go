/*
# Theory of operation

A Server is given its whole desired state by Set and compiles it into an immutable snapshot: the match.Table of all
routes, one upstream per Service port, the certificates by name. What is the same as before is not compiled again. The
snapshot is swapped atomically. A request reads it once, when it begins, and keeps what it found.

A Config knows no endpoint. Options.Endpoints is asked with every request, so that what is ready is decided in one place for
L4 and L7. While it gives the very same list, an upstream goes on with what it made of it, which endpoints did not answer among it; no
lock is taken then.

	listener ─ TLS by SNI ─ HTTP/1.1 or HTTP/2 ─ match host, path ─ upstream ─ ready endpoint ─ Dial
	                                                │                  │           └ dial failed: next endpoint
	                                                │                  └ none ready: 503
	                                                └ no route: default backend, else 404

HTTP. Clients speak HTTP/1.1 or HTTP/2: by ALPN over TLS, by prior knowledge (h2c) in the clear; net/http serves both.
Backends are spoken to in HTTP/1.1 (package http1), except for gRPC (HTTP/2 with content type application/grpc), which goes
to them as h2c, trailers and all. WebSocket and other HTTP/1.1 upgrades are passed through, but not "Upgrade: h2c": inside
such a tunnel a client could send requests that no route was asked about.

Bytes. The path is the client's, but for its dot segments (package target). Headers are the client's and the backend's,
but for those that are ours (headers.go). Both directions flow as they come: before a read that may wait, what there is
has been sent (request.copy).

Headers. What the client says in Forwarded, X-Real-Ip or any X-Forwarded-*, however it spells them, is thrown away, not
appended to, since nothing stands between the client and the Server whose word could be trusted. The Server then sets
X-Forwarded-For and X-Real-Ip (the address of the client's connection), -Host, -Proto and -Port (the port it was
reached on). Host stays as it was.

100 Continue is the backend's to say: net/http sends it when the body is first read, so the first read waits for the
backend (clientBody.wait).

Where a request ends. Full duplex keeps net/http from reading a body that the backend is to get, and from noticing that
one is broken. So a connection whose last body is not whole is marked, and ended before anything behind it is taken for a
request (conn.lost). What the client still sends is read for a while, so that it does not lose the response (conn.Close).

Fair shares. Connections, and requests in HTTP/2, are charged to the client's address (conns.go, package share). A client
that stops in the middle of a body or a response is cut off (stall).

Endpoints are used round robin. A failed dial has sent nothing, so the request goes on to the next endpoint, and
the failed one is left out for a second: a backend that just died costs the first request one failed dial, and the others
nothing. A request that has begun to flow is never sent twice, but for two kinds. A
harmless one without a body that got no byte of an answer goes from a connection that was kept to a new one, and once from
there to another endpoint. A gRPC stream whose backend says that it did not begin it goes to another connection, with what was
sent of it (package replay).

TLS. A certificate is chosen by SNI: exact host, then one-label wildcard, and at last one that the Server signs itself, so
that the client shows a warning instead of a reset. Of several for one host the first of the Config is served that is
valid and that the client can use. A connection is good for all hosts, whatever its SNI.

Restart and drain. Shutdown stops accepting, lets requests finish, and cuts what is still there when its context ends,
upgraded connections among them; Stats counts those.

The package has more than 1,500 lines because a request is one thing from its connection to its response: what is refused,
counted and cut at one end depends on how far it got at the other.
*/
package ingress
