/*
Package bench measures the network with TCP and compares what it measures with baselines taken in the same run.

# Theory of operation

Absolute figures of a virtual machine say little: they change from one minute to the next with its neighbours. Bench
therefore measures subjects and baselines interleaved (A B A B ...), in the same minutes and on the same cores, and
reports the ratio of the medians beside them.

A subject is a Topology: two network namespaces, and the address under which the client's reaches the server's. What
joins them is the subject. The baselines are made here: KernelBridge, NullLoop and WireGuard. Topologies of Tapestry
itself come from whoever runs its nodes.

Client and server are processes of their own inside the namespaces (Command is their main function), as real programs
are: neither shares a Go runtime with the other or with what lies between. One server process serves every kind of measurement:

	client                                         server
	hello {kind, sizes, duration}  ───────────────>
	upload    bytes until time is up, FIN  ───────>  counts
	          <──── report {bytes, nanoseconds}, FIN
	download  counts  <──── bytes until time is up, FIN
	exchange  request ──> <── response, again and again; or once, and the server closes

Bytes are counted, and timed, where they are received. In connect-request-close the server closes first, so that the
TIME_WAIT states, of which a run leaves tens of thousands, are in its namespace and cost the client no ports.
*/
package bench
