// Command tapestry-cni is the CNI plugin. A container runtime runs it to attach a pod to the network or to detach one.
package main

import (
	"fmt"
	"os"

	"tapestry.dev/tapestry/kube/cni/plugin"
	"tapestry.dev/tapestry/version"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" { // runtimes pass no arguments
		fmt.Println(plugin.Name, "version", version.String())
		return
	}
	os.Exit(plugin.Main())
}
