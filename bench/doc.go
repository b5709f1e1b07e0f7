/*
Package bench measures the network and compares what it measures with baselines taken in the same run.

# Theory of operation

Absolute figures of a virtual machine say little: they change from one minute to the next with its neighbours. Bench
therefore measures subjects and baselines interleaved (A B A B ...), in the same minutes and on the same cores. It
reports the medians and their ratio.

A subject is a Topology: a namespace with clients, a namespace with servers, and the address at which the clients reach
a server. What is measured is what joins the two namespaces. Package baseline makes the Topologies that Tapestry is
compared with. Package labs makes those of Tapestry itself.

Client and server are processes of their own inside the namespaces, like real programs; package load is their program.
Neither shares a Go runtime with the other or with what lies between. A run has a warm-up round, which does not count,
and then Rounds in which each Case is measured on each Topology in turn. Beside each throughput stands its cost: the
time that all processors of the machine were busy meanwhile, both ends included.
*/
package bench
