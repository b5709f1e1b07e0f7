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

// The test binary is the program in the test's pods, too. A network of our own makes every port ours.
func TestMain(m *testing.M) {
	// Under the race detector every process would otherwise sleep for a second at its end.
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
