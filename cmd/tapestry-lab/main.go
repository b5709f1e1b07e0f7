// Command tapestry-lab is what Tapestry is tried and measured with: a cluster on this machine, the demo and the
// benchmarks. The agents of its clusters are the executable tapestry beside it.
package main

import (
	"os"

	"tapestry.dev/tapestry/cmd/tapestry-lab/app"
)

func main() { os.Exit(app.Run(os.Args)) }
