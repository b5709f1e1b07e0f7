/*
Package load is the load generator: clients that measure, and the server that they talk to.

# Theory of operation

One server process serves every kind of measurement. Over TCP:

	client                                         server
	hello {kind, sizes, duration}  ───────────────>
	upload    bytes until time is up, FIN  ───────>  counts
	          <──── report {bytes, nanoseconds}, FIN
	download  counts  <──── bytes until time is up, FIN
	exchange  request ──> <── response, again and again; or once, and the server closes

Bytes are counted, and timed, where they are received. In connect-request-close the server closes first, so that the
TIME_WAIT states, of which a run leaves tens of thousands, are in its namespace and cost the client no ports.
*/
package load
