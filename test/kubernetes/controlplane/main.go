// Command controlplane is the control plane of a Kubernetes cluster in one process: etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler, the real ones.
//
//	controlplane up -dir DIR [flags]
//
// It makes what it needs in DIR: certificates (pki/), kubeconfigs (admin.kubeconfig for everything,
// kubelet-NODE.kubeconfig for each of -nodes), etcd's data. When its controllers work, which takes about three
// seconds, it writes DIR/ready, with the address of the API server in it. Started again with the same DIR, it goes on
// with the same cluster.
//
// It ends at once on SIGTERM and on SIGKILL; what it has written survives both. Feature gates, metrics and logging are
// global in Kubernetes' packages, so there is one control plane to a process, and none to a test binary: tests run this
// program as a child.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 || os.Args[1] != "up" {
		fmt.Fprintln(os.Stderr, "usage: controlplane up -dir DIR [flags]; controlplane up -h lists the flags")
		os.Exit(2)
	}
	o, err := parse(os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(2)
	}
	// Kubernetes' commands look at os.Args only for their name.
	os.Args = os.Args[:1]
	if err := up(o); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}
