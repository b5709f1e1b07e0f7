// Command tapestry is the userspace network for Kubernetes. It contains the agent of a node, the keeper, the steps
// before the agent, and tools that report the state of the network.
package main

import (
	"os"

	"tapestry.dev/tapestry/cmd/tapestry/app"
)

func main() { os.Exit(app.Run(os.Args)) }
