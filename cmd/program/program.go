// Package program runs a command line from beginning to end. It handles the signals that end the command, the printing
// of errors, and the exit status.
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

// Run runs one command line of app until it ends or SIGINT or SIGTERM arrives, and returns the exit status. This is
// 130 after a signal, the code of a cli.ExitCoder if the error is one, and 1 for any other error. Run prints the
// error, with the name of app before it.
func Run(app *cli.App, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app.Version = version.String()
	app.EnableBashCompletion = true
	app.HideHelpCommand = true
	app.ExitErrHandler = func(*cli.Context, error) {} // errors are printed once, below
	err := app.RunContext(ctx, args)
	var exit cli.ExitCoder
	var child *exec.ExitError // an ExitCoder too, but its code does not say what failed
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return 130 // the user ended it and needs no message
	case errors.As(err, &exit) && !errors.As(err, &child):
		if msg := exit.Error(); msg != "" {
			say(app, msg)
		}
		return exit.ExitCode()
	}
	say(app, err.Error())
	return 1
}

// say prints an error, which may contain text of others.
func say(app *cli.App, text string) { fmt.Fprintln(os.Stderr, app.Name+":", visible.Lines(text)) }
