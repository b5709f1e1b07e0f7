// Package app is the command line of tapestry: flags become Configs, Configs are wired together and run.
package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/tapestry/agent"
	"tapestry.dev/tapestry/cmd/tapestry/connectivity"
	"tapestry.dev/tapestry/cmd/tapestry/doctor"
	"tapestry.dev/tapestry/cmd/tapestry/nodeinit"
	"tapestry.dev/tapestry/cmd/tapestry/status"
	"tapestry.dev/tapestry/test/lab"
)

// Run executes one command line and returns the exit status.
func Run(args []string) int {
	lab.Maybe() // does not return in the processes of a lab
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := &cli.App{
		Name:                 "tapestry",
		Usage:                "a userspace network for Kubernetes",
		Description:          "Pods, Services, DNS, NodePorts and Ingress without iptables, nftables, IPVS, eBPF or kernel WireGuard.\nStart with 'tapestry demo'.",
		Version:              version(),
		EnableBashCompletion: true,
		HideHelpCommand:      true,
		Commands: []*cli.Command{
			agent.Command(),
			status.Command(),
			doctor.Command(),
			connectivity.Command(),
			keeperCommand(),
			nodeinit.HostPort(),
			nodeinit.Directories(),
			nodeinit.Pause(),
			cniCommand(),
			labCommand(),
			demoCommand(),
			benchCommand(),
			serveCommand(),
			probeCommand(),
		},
		// Errors are printed once, below.
		ExitErrHandler: func(*cli.Context, error) {},
	}
	err := app.RunContext(ctx, args)
	var exit cli.ExitCoder
	var child *exec.ExitError // looks like an ExitCoder, and says nothing of what failed
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return 130 // ^C: whoever pressed it knows
	case errors.As(err, &exit) && !errors.As(err, &child):
		if msg := exit.Error(); msg != "" {
			fmt.Fprintln(os.Stderr, "tapestry:", msg)
		}
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "tapestry:", err)
	return 1
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "development"
}
