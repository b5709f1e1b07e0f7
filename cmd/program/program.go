// Package program runs a command line from beginning to end: what ends it, what is printed of an error, and the exit
// status.
package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/version"
	"tapestry.dev/tapestry/visible"
)

// Run carries out one command line of app, whose name begins every error, until it ends or SIGINT or SIGTERM comes,
// and returns the exit status: 130 after ^C, that of a cli.ExitCoder, and otherwise 1 for any error, which is printed
// here.
func Run(app *cli.App, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app.Version = version.String()
	app.EnableBashCompletion = true
	app.HideHelpCommand = true
	app.ExitErrHandler = func(*cli.Context, error) {} // errors are printed once, below
	err := app.RunContext(ctx, args)
	var exit cli.ExitCoder
	var child *exec.ExitError // looks like an ExitCoder, and says nothing of what failed
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return 130 // whoever pressed ^C knows
	case errors.As(err, &exit) && !errors.As(err, &child):
		if msg := exit.Error(); msg != "" {
			say(app, msg)
		}
		return exit.ExitCode()
	}
	say(app, err.Error())
	return 1
}

// say prints an error, which may quote what others wrote.
func say(app *cli.App, text string) { fmt.Fprintln(os.Stderr, app.Name+":", visible.Lines(text)) }
