// Package announcer is how the command lines of announcers begin and end. They link no framework for command lines,
// which would be most of their size.
package announcer

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/version"
)

// Program is one announcer.
type Program struct {
	Name string
	// Usage says what it does and what it needs.
	Usage string
	// Flags adds flags of its own; nil adds none.
	Flags func(*flag.FlagSet)
	// Announce announces for a node what its agent says, until ctx is done.
	Announce func(ctx context.Context, at Place, log *slog.Logger) error
}

// Place is where an announcer runs: the name of the node, and the path of its agent's socket for announcers.
type Place struct{ Node, Agent string }

// Main runs the command line of this process, and ends the process.
func (p *Program) Main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := p.Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Run runs a command line, and returns the exit status.
func (p *Program) Run(ctx context.Context, args []string, out, errs io.Writer) int {
	flags := flag.NewFlagSet(p.Name, flag.ContinueOnError)
	flags.SetOutput(errs)
	flags.Usage = func() {
		fmt.Fprintln(errs, p.Usage)
		flags.PrintDefaults()
	}
	var at Place
	flags.StringVar(&at.Node, "node", "", "`NAME` of this node (required)")
	flags.StringVar(&at.Agent, "agent", localapi.AnnounceSocket, "the agent's --announce-socket, a `SOCKET`")
	show := flags.Bool("version", false, "print the version and end")
	if p.Flags != nil {
		p.Flags(flags)
	}
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *show {
		fmt.Fprintln(out, p.Name, "version", version.String())
		return 0
	}
	if at.Node == "" || flags.NArg() > 0 {
		fmt.Fprintln(errs, p.Name+": --node is required, and there are no other arguments than flags")
		return 2
	}
	log := slog.New(slog.NewTextHandler(errs, nil)).With("node", at.Node)
	if err := p.Announce(ctx, at, log); err != nil {
		log.Error("the announcer ends", "err", err)
		return 1
	}
	return 0
}
