// Command tapestry-lab tries and measures Tapestry. It has a cluster on this machine, the demo and the benchmarks. The
// agents of its clusters are the executable tapestry beside it.
package main

import (
	"os"

	"tapestry.dev/tapestry/cmd/tapestry-lab/app"
)

func main() { os.Exit(app.Run(os.Args)) }
