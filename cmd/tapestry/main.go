// Command tapestry is the userspace network for Kubernetes: the agent of a node with the keeper and the steps beside
// it, and the tools that tell how the network is.
package main

import (
	"os"

	"tapestry.dev/tapestry/cmd/tapestry/app"
)

func main() { os.Exit(app.Run(os.Args)) }
