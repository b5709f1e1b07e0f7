// Command tapestry-l2 announces addresses of load balancers by ARP and NDP: those that the agent of its node says. It
// is a process of its own, so that the agent needs no NET_RAW and links nothing of it.
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

	"tapestry.dev/tapestry/announce/link"
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
	flags := flag.NewFlagSet("tapestry-l2", flag.ContinueOnError)
	flags.SetOutput(errs)
	flags.Usage = func() {
		fmt.Fprintln(errs, "tapestry-l2 announces addresses of load balancers by ARP and NDP, as the agent of its node says. It needs the\n"+
			"capability NET_RAW, the host's network, and to be root or the agent's user.")
		flags.PrintDefaults()
	}
	node := flags.String("node", "", "`NAME` of this node (required)")
	socket := flags.String("agent", localapi.AnnounceSocket, "the agent's --announce-socket, a `SOCKET`")
	show := flags.Bool("version", false, "print the version and end")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *show {
		fmt.Fprintln(out, "tapestry-l2 version", version.String())
		return 0
	}
	if *node == "" || flags.NArg() > 0 {
		fmt.Fprintln(errs, "tapestry-l2: --node is required, and there are no other arguments than flags")
		return 2
	}
	log := slog.New(slog.NewTextHandler(errs, nil)).With("node", *node)
	if err := link.Run(ctx, link.Options{Node: *node, Agent: *socket, Log: log}); err != nil {
		log.Error("the announcer ends", "err", err)
		return 1
	}
	return 0
}
