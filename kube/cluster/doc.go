// Package cluster is the conversation with a real API server: its objects become snapshots, as package manifests
// has them of a directory, and what a node says of itself goes to its Node (package tell).
//
// # What is watched
//
// One watch per kind, through client-go's reflectors: Services, EndpointSlices, Nodes, the Pods of this node,
// Ingresses and their classes, ServiceCIDRs; of NetworkPolicies, which are not enforced yet, the
// names; and one watch for each Secret that an Ingress of ours refers to. Objects are reduced to what Tapestry
// uses as they arrive. Lists come streamed where the server can (KEP-3157), else in pages. Nothing is polled.
//
// No snapshot is given out before every kind has been read once: a restart never blanks a node. Kinds that the API
// server does not know, or refuses to show us, are passed over when the rest makes sense without them; a refusal
// is a Problem. Changes that come together are told together.
//
// # When the API server is gone
//
// What is known stays in force, and SourceState says how old it is. One goroutine looks for a server, on every address
// that is known (package servers), with growing pauses and jitter; all requests wait for it and go on where they
// were. A server whose history ends before what we have seen (its etcd was restored) would take our watches and
// keep silent, so after a watch was cut its version is looked at, and everything is listed anew. Where etcd was
// restored and has grown past what we have seen meanwhile, nothing can tell: bump its revision when you restore
// it, as etcd's manual says (etcdutl snapshot restore --bump-revision --mark-compacted).
//
// # Whom to believe
//
// An agent may patch Nodes, and RBAC cannot say "only its own". A ValidatingAdmissionPolicy can, and deploy/ brings
// one. While its binding is not there, an agent goes on using the key it has seen first in a Node (package pins):
// whoever takes over one agent's token cannot then put a key of his own in the place of another node's. Nor can
// whoever takes over a kubelet, which writes its Node's addresses, have others send him what is not meant for that
// node.
package cluster
