// Command tapestry-bgp announces addresses of load balancers by BGP: those that the agent of its node says. It is
// a process of its own, so that agents link nothing of it.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"tapestry.dev/tapestry/announce/bgp"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, out, errs io.Writer) int {
	flags := flag.NewFlagSet("tapestry-bgp", flag.ContinueOnError)
	flags.SetOutput(errs)
	flags.Usage = func() {
		fmt.Fprintln(errs, "tapestry-bgp announces addresses of load balancers by BGP, as the agent of its node says. It needs the host's network,\n"+
			"no capability, and to be root or one of the agent's --announce-uid.")
		flags.PrintDefaults()
	}
	node := flags.String("node", "", "`NAME` of this node (required)")
	socket := flags.String("agent", localapi.AnnounceSocket, "the agent's --announce-socket, a `SOCKET`")
	passwords := flags.String("passwords", "", "`DIR` with a file for each password that a BGPPeer names")
	show := flags.Bool("version", false, "print the version and end")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *show {
		fmt.Fprintln(out, "tapestry-bgp version", version.String())
		return 0
	}
	if *node == "" || flags.NArg() > 0 {
		fmt.Fprintln(errs, "tapestry-bgp: --node is required, and there are no other arguments than flags")
		return 2
	}
	log := slog.New(slog.NewTextHandler(errs, nil)).With("node", *node)
	bgp.Run(ctx, bgp.Options{Node: *node, Agent: *socket, Passwords: *passwords, Log: log})
	return 0
}
