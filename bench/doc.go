/*
Package bench measures the network and compares what it measures with baselines taken in the same run.

# Theory of operation

Absolute figures of a virtual machine say little: they change from one minute to the next with its neighbours. Bench
therefore measures subjects and baselines interleaved (A B A B ...), in the same minutes and on the same cores, and
reports the ratio of the medians beside them.

A subject is a Topology: a namespace with clients, one with servers, and the address under which a server is reached. What
joins them is the subject. Package baseline makes those that Tapestry is compared with. Topologies of Tapestry itself
come from whoever runs its nodes.

Client and server are processes of their own inside the namespaces (package load is their program), as real programs are:
neither shares a Go runtime with the other or with what lies between. A run has a warm-up round, which does not count, and
then Rounds in which each Case is measured on each Topology in turn. Beside each throughput stands what it cost: the time
that all processors of the machine were busy meanwhile, both ends included.
*/
package bench
