package baseline

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/test/userns"
)

// commandVar, when set, makes the test's executable run one of bench's programs in place of the tests.
const commandVar = "BENCH_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(commandVar) != "" {
		run := load.Command
		if slices.Contains(Commands, os.Args[1]) {
			run = Command
		}
		if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// The programs that "make peers" builds, if they were built.
	if peers, err := filepath.Abs("../../bin/peers"); err == nil {
		os.Setenv("PATH", peers+string(filepath.ListSeparator)+os.Getenv("PATH"))
	}
	userns.Main(m)
}

func spawn(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	// The race detector sleeps for a second when a process ends, which here is after every measurement.
	cmd.Env = append(os.Environ(), commandVar+"=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}
