// Command tapestry-cni is the CNI plugin: a container runtime starts it to attach a pod to the network, or to detach one.
package main

import (
	"os"

	"tapestry.dev/tapestry/kube/cni/plugin"
)

func main() { os.Exit(plugin.Main()) }
