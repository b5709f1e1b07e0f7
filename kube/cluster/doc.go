// Package cluster talks to a real API server. It turns the server's objects into snapshots, as package manifests does
// with a directory, and writes what a node says of itself on its Node (package tell).
//
// # What is watched
//
// One client-go reflector watches each kind: Services, EndpointSlices, Nodes, the Pods of this node, Ingresses and
// their classes, ServiceCIDRs, NetworkPolicies, ClusterNetworkPolicies; and while there are policies, Namespaces and
// the Pods of all other nodes, of which only what policies look at is kept (kube.OtherPod). Each Secret that an Ingress
// served here refers to has a watch of its own; users decide how many there are, so requests for them are paced
// (package turns). Of a kind with two versions, the older is asked for where the server does not know the newer.
// Objects are reduced to what Tapestry uses as they arrive. Lists come as a stream where the server can do that
// (KEP-3157), else in pages. Nothing is polled.
//
// A Cluster begins with the last snapshot of the agent before, which is kept on disk (package saved). No other is
// delivered before every kind has been read once, so a restart never blanks a node. Secrets are waited for during three
// seconds only. A kind that the API server does not know, or does not let the agent read, is passed over when the rest
// makes sense without it; a refusal is reported as a Problem. Changes that arrive together are delivered together.
//
// # When the API server is gone
//
// The last known state stays in force, and SourceState says how old it is. One goroutine looks for a server at every
// known address (package servers), with growing pauses and jitter; all requests wait for it and then continue. A
// server whose history ends before the version seen last (its etcd was restored) would accept a watch and stay
// silent. So after a watch was cut, the server's version is read first, and everything is listed anew when it is
// older. If etcd was restored and has already grown past that version, no client can notice: bump the revision when
// you restore etcd, as its manual says (etcdutl snapshot restore --bump-revision --mark-compacted).
//
// # Whom to believe
//
// An agent may patch Nodes, and RBAC cannot express "only its own". A ValidatingAdmissionPolicy can, and deploy/
// contains one. While its binding is missing, an agent keeps using the key that it saw first in a Node (package
// pins). So an attacker with one agent's token cannot replace the key of another node with his own. Nor can an
// attacker with a kubelet's credentials, who may write the addresses of its Node, attract traffic that is meant for
// other nodes.
//
// The package has more than 1,500 lines because reading kinds, keeping what was read and choosing a server need one
// another's state; what needs less of it has packages below this one.
package cluster
