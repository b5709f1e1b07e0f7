// Package lab brings up a Kubernetes cluster on this machine, and takes it down. Each node is a network namespace with
// its own containerd and kubelet. The control plane runs in the first node's network namespace, as in a cluster with a
// single control plane node. There is no kube-proxy, no DNS server and no CNI plugin, since the network under test
// provides these.
//
//	outside  172.30.0.1       the nodes' default route, and a host that is no node
//	   |
//	bridge ---- node-1  172.30.0.11   control plane, containerd, kubelet
//	   |
//	   +------- node-2  172.30.0.12   containerd, kubelet
//
// All processes of a lab are in the lab's cgroups, where Down finds every one of them, whatever happened to Up.
// Namespaces and mounts end with their processes.
//
// The package has slightly more than 1,500 lines, because bringing a node up and taking it down share its cgroups,
// mounts and processes.
package lab
