// Command controlplane is the control plane of a Kubernetes cluster in one process: the real etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler.
//
//	controlplane up -dir DIR [flags]
//
// It makes what it needs in DIR: certificates (pki/), kubeconfigs (admin.kubeconfig for everything,
// kubelet-NODE.kubeconfig for each of -nodes), and etcd's data. When its controllers work, which takes about three
// seconds, it writes the address of the API server into DIR/ready. Started again with the same DIR, it continues with
// the same cluster.
//
// It ends at once on SIGTERM and on SIGKILL. What it has written survives both. Feature gates, metrics and logging are
// global in Kubernetes' packages, so a process can have only one control plane, and a test binary should have none.
// Tests therefore run this program as a child.
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
	// Kubernetes' commands use only their name from os.Args.
	os.Args = os.Args[:1]
	if err := up(o); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}
