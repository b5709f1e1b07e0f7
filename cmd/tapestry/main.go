// Command tapestry is the userspace network for Kubernetes: agent, lab, demo and benchmark in one program.
package main

import (
	"os"

	"tapestry.dev/tapestry/cmd/tapestry/app"
)

func main() { os.Exit(app.Run(os.Args)) }
