// Package scale measures how Tapestry's control path and memory grow with the cluster: the suites "scale" and "memory".
//
// Both run real agents, processes of their own in a network namespace with a keeper, a directory of manifests, and
// pods whose TAPs are attached as the CNI executable would. Only the kubelet and the API server are missing: the suite
// writes the manifests itself, one file for each Service with its EndpointSlice, as kubectl get -o yaml prints them.
//
// # What is measured
//
// Load, of N Services with M endpoints each. The first packet: from the start of an agent's process, its pods being
// attached already as after a crash, to the first answer that a pod gets through the Service which is read last.
// And the steps by themselves, in the process of the suite: reading the files, translating the objects, compiling the
// table. RSS is that of the agent after it has settled, above that of one without Services.
//
// Change. A pod asks a Service every 200 microseconds, on one flow, and is told who answers. The file with the
// Service's EndpointSlice is replaced by one with another backend. The clock starts before the rename(2) that puts it
// in place and stops at the first answer by the new backend, so that the figure has everything in it: the
// notification, reading and parsing, translation, compiling, the swap, the end of the old flow and the way there and
// back. What it can resolve is the time between two questions.
//
// Flows. A table in shared memory, as the agent's, is filled; then every flow is looked up once in an order that no
// cache foresees, and as many that are not there.
//
// Memory. Resident memory as /proc says it, in total and by kind: anonymous, of files (the program, which agents on
// one machine share), and shared (the flow memory, which counts once a page of it was used). Flows are made by
// packets, and counted in the memory that the agent leaves behind. Peers are Nodes with keys whose endpoints lose
// everything, so that no session comes of it: a peer with one has some 3 KB of keys more.
package scale
