// Package scale measures how Tapestry's control path and memory grow with the cluster: the suites "scale" and "memory".
//
// Both suites run real agents: processes of their own in a network namespace, with a keeper, a directory of manifests,
// and pods whose TAPs are attached as the CNI executable attaches them. Only the kubelet and the API server are
// missing. The suite writes the manifests itself, one file for each Service with its EndpointSlice, as kubectl get -o
// yaml prints them.
//
// # What is measured
//
// Load, with N Services of M endpoints each. The time to the first packet goes from the start of an agent's process to
// the first answer that a pod gets through the Service which is read last. The pods are attached already, as after a
// crash. The process of the suite also measures each step by itself: reading the files, translating the objects,
// compiling the table. RSS is that of the agent after it has settled, less that of an agent without Services.
//
// Change. A pod asks a Service every 200 microseconds, on one flow, and learns who answers. The suite replaces the file
// with the Service's EndpointSlice by one with another backend. The clock starts before the rename(2) that puts the
// file in place and stops at the first answer by the new backend. The figure therefore includes everything: the
// notification, reading and parsing, translation, compiling, the swap, the end of the old flow, and the round trip. Its
// resolution is the time between two questions.
//
// Flows. The suite fills a table in shared memory, like the agent's. Then it looks every flow up once in an order that
// no cache foresees, and as many flows that are not there.
//
// Memory. The figures are the resident memory in /proc, in total and by kind: anonymous, of files (the program, which
// agents on one machine share), and shared (the flow memory, of which a page counts once it was used). Packets make the
// flows, and the flows are counted in the memory that the agent leaves behind. Peers are Nodes with keys whose
// endpoints lose every packet, so they never have a session. A peer with a session has about 3 KB of keys more.
package scale
