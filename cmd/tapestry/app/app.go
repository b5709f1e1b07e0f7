// Package app is the command line of tapestry.
package app

import (
	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/program"
	"tapestry.dev/tapestry/cmd/tapestry/agent"
	"tapestry.dev/tapestry/cmd/tapestry/bugreport"
	"tapestry.dev/tapestry/cmd/tapestry/connectivity"
	"tapestry.dev/tapestry/cmd/tapestry/controller"
	"tapestry.dev/tapestry/cmd/tapestry/doctor"
	"tapestry.dev/tapestry/cmd/tapestry/flows"
	"tapestry.dev/tapestry/cmd/tapestry/keeper"
	"tapestry.dev/tapestry/cmd/tapestry/nodeinit"
	"tapestry.dev/tapestry/cmd/tapestry/policy"
	"tapestry.dev/tapestry/cmd/tapestry/status"
	"tapestry.dev/tapestry/cmd/tapestry/supervise"
)

// Run runs one command line and returns the exit status.
func Run(args []string) int {
	return program.Run(&cli.App{
		Name:        "tapestry",
		Usage:       "a userspace network for Kubernetes",
		Description: "Pods, Services, DNS, NodePorts and Ingress without iptables, nftables, IPVS, eBPF or kernel WireGuard.\n'tapestry-lab demo' shows all of it on this machine.",
		Commands:    Commands(),
	}, args)
}

// Commands returns all commands.
func Commands() []*cli.Command {
	return []*cli.Command{
		agent.Command(),
		supervise.Command(),
		controller.Command(),
		keeper.Command(),
		nodeinit.HostTAP(),
		nodeinit.Directories(),
		nodeinit.Pause(),
		agent.Prepared(),
		cniCommand(),
		status.Command(),
		flows.Command(),
		policy.Command(),
		doctor.Command(),
		connectivity.Command(),
		bugreport.Command(),
	}
}
