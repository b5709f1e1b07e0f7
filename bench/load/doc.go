/*
Package load is the load generator: clients that measure, and the server that they talk to.

# Theory of operation

One server process serves every kind of measurement but DNS, which asks name servers. Over TCP:

	client                                         server
	hello {kind, sizes, duration}  ───────────────>
	upload    bytes until time is up, FIN  ───────>  counts
	          <──── report {bytes, nanoseconds}, FIN
	download  counts  <──── bytes until time is up, FIN
	exchange  request ──> <── response, again and again; or once, and the server closes
	datagrams          <──── number of the stream
	  over UDP, to the same port: {number, sequence} and filling ──> counts, or answers with as much filling as agreed
	          packets sent ───────────────────────>  waits for what is under way
	          <──── report {packets, bytes, reordered, duplicates, nanoseconds}

Bytes and packets are counted, and timed, where they are received. In connect-request-close the server closes first, so that the
TIME_WAIT states, of which a run leaves tens of thousands, are in its namespace and cost the client no ports.

HTTP is served on a port of its own, for proxies in front of it, too: GET /bytes/N.

Transactions run in a closed loop or, with a Rate, an open one: see package pace. Package datagram is the part over UDP.
*/
package load
