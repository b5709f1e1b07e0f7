package connectivity

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/test/userns"
)

// The test binary is also the program in the test's pods. It runs in a network namespace of its own, in which all
// ports are free.
func TestMain(m *testing.M) {
	// Without this, the race detector makes every process sleep for a second at its end.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	if len(os.Args) < 2 || os.Args[1] != name {
		userns.Main(m)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	app := &cli.App{Commands: []*cli.Command{Command()}}
	if err := app.RunContext(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
