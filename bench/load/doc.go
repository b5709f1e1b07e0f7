/*
Package load is the load generator: clients that measure, and their server.

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

The receiver counts and times bytes and packets. In connect-request-close the server closes first: a run leaves tens of
thousands of TIME_WAIT states, which are then in the server's namespace and cost the client no ports.

HTTP is served on a port of its own, where proxies reach it as well: GET /bytes/N.

Transactions run in a closed loop or, with a Rate, in an open one; see package pace. Package datagram is the part over
UDP.
*/
package load
