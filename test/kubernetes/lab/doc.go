// Package lab brings up a Kubernetes cluster on this machine, and takes it down: nodes, each a network namespace with
// its own containerd and kubelet, and a control plane, which runs in the first node's network namespace as on a
// cluster with a single control plane node. There is no kube-proxy, no DNS server and no CNI plugin: that is for who
// is tested.
//
//	outside  172.30.0.1       the nodes' default route, and a host that is no node
//	   |
//	bridge ---- node-1  172.30.0.11   control plane, containerd, kubelet
//	   |
//	   +------- node-2  172.30.0.12   containerd, kubelet
//
// All processes of a lab are in cgroups of the lab, by which they are found again: so there is nothing that Down could
// miss, whatever became of an Up. Namespaces and mounts end with their processes.
package lab
