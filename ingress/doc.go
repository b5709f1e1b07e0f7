/*
# Theory of operation

Set gives a Server its whole desired state, and compiles it into an immutable snapshot: the match.Table of all routes,
one upstream per Service port, the certificates by name. What is the same as before is not compiled again. The snapshot
is swapped atomically. A request reads it once, when it begins, and keeps what it found.

A Config has no endpoints. Options.Endpoints is asked with every request, so that one place decides for L4 and L7 which
endpoints are ready. While it returns the same slice, an upstream keeps its endpoints, and which of them did not answer,
and takes no lock.

	listener ─ TLS by SNI ─ HTTP/1.1 or HTTP/2 ─ match host, path ─ upstream ─ ready endpoint ─ Dial
	                                                │                  │           └ dial failed: next endpoint
	                                                │                  └ none ready: 503
	                                                └ no route: default backend, else 404

HTTP. Clients speak HTTP/1.1 or HTTP/2: by ALPN over TLS, by prior knowledge (h2c) without TLS; net/http serves both.
Requests go to backends in HTTP/1.1 (package http1), except for gRPC (HTTP/2 with content type application/grpc), which
goes to them as h2c, trailers included. WebSocket is passed through, and what a route allows besides (Route.Upgrades):
inside a tunnel like that of h2c a client could send requests that bypass the routes.

Bytes. The path is sent as the client sent it, without its dot segments (package target). Headers are passed on as they
are, except those that the Server sets or removes (headers.go). Bytes of both directions are passed on as they arrive:
the Server flushes before each read that may wait (request.copy).

Headers. The Server removes the client's Forwarded, X-Real-Ip and X-Forwarded-*, in any spelling, and does not append to
them, since there is no trusted proxy between the client and the Server. It then sets X-Forwarded-For and X-Real-Ip (the
address of the client's connection), X-Forwarded-Host, X-Forwarded-Proto and X-Forwarded-Port (the port that the client
connected to). Host stays as it was.

100 Continue. The backend decides whether it wants the body. net/http sends 100 Continue when the body is first read, so
the first read waits for the backend (clientBody.wait).

Where a request ends. Full duplex keeps net/http from reading a body that is meant for the backend, and also from
noticing that a body is broken. So a connection whose last body is not whole is marked, and ended before what follows is
taken for a request (conn.lost). What the client still sends is read for a while, so that the client does not lose the
response (conn.Close).

Fair shares. Connections, and requests in HTTP/2, are charged to the client's address (conns.go, package share). A
client that stops in the middle of a body or a response, or all but stops, is cut off (stall). Clients take turns: when
something that they sent is looked at (guests.turn), and when a private key signs that takes long (signing). A client
that opens many connections has them begun at a pace (share.Lobby). Those that are refused to a client whose others are
all in use are kept for a while before they are reset, or it would dial again at once (package limbo). A client whose
connections come to nothing is slowed down (calm), and bodies of crumbs are read now and then (crumbs).

Endpoints are used round robin. A failed dial has sent nothing, so the request goes on to the next endpoint, and the
failed endpoint is left out for a second: a backend that just died costs the first request one failed dial, and the
others nothing. A request that was begun is not sent twice, with two exceptions. A harmless request without a body that
got no byte of an answer is sent again, first over a new connection if the first one had been idle, and then once to
another endpoint. A gRPC stream that its backend says it did not begin is sent again over another connection, from its
beginning (package replay).

A Law says which endpoints a client may reach (law.go). A client is who has made the connection, which may be another
than the address that it comes from (Options.Who). That a client may reach none at all is remembered (denials), so that
its next requests cost one judgement and not one for each endpoint.

TLS. A certificate is chosen by SNI: exact host, then one-label wildcard, and at last one that the Server signs itself,
so that the user sees a warning and not a reset. Of several for one host the first of the Config is served that is valid
and that the client can use. A connection may carry requests for all hosts, whatever its SNI.

Restart and drain. Shutdown stops accepting, lets requests finish, and cuts what is still under way when its context
ends, upgraded connections included; Stats counts them.

The package has more than 1,500 lines because the parts of a request depend on each other, from its connection to its
response: what is refused, counted and cut at one end depends on how far the request got at the other.
*/
package ingress
