// Package app is the command line of tapestry-lab.
package app

import (
	"slices"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/program"
	"tapestry.dev/tapestry/cmd/tapestry-lab/inside"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/product"
)

// Run runs one command line and returns the exit status.
func Run(args []string) int {
	lab.Maybe() // does not return in the processes of a lab
	return program.Run(&cli.App{
		Name:  "tapestry-lab",
		Usage: "a small real cluster on this machine, to try and to measure Tapestry with",
		Description: `Every Node of a YAML file becomes a network namespace with an agent process of its own, every Pod a
network namespace with a TAP in which the containers' commands run as processes, joined by a kernel bridge as underlay.
Images are not used: a command is any program of this machine, and a container without one runs 'tapestry-lab serve'.
It needs no root. Edit the file while the lab runs, and the difference is applied.

   tapestry-lab demo
   tapestry-lab up -f lab.yaml --detach --wait
   tapestry-lab ps
   tapestry-lab exec client -- curl http://web
   tapestry-lab down`,
		Commands: slices.Concat([]*cli.Command{
			demoCommand(), upCommand(), psCommand(), execCommand(), nodeCommand(), outsideCommand(), logsCommand(), impairCommand(),
			agentCommand(), keeperCommand(), downCommand(),
		}, toolCommands(), []*cli.Command{benchCommand(), serveCommand(), inside.Probe()}),
	}, args)
}

// productFlag is --tapestry.
func productFlag() cli.Flag {
	return &cli.StringFlag{Name: "tapestry", Usage: "`PATH` of the executable tapestry", EnvVars: []string{product.Variable}, DefaultText: "the one beside this program"}
}
