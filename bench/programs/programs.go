/*
Package programs measures with two well-known programs, iperf3 and wrk, and converts their results to the load
generator's form. Comparing the two shows how far the load generator's own figures can be trusted.

The commands take those of the load generator's options that the programs have, and refuse the others. The programs
measure whole seconds, so shorter times become a second.
*/
package programs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/bench/process"
)

// serveCommand runs iperf3's server. wrk needs no server of its own.
const serveCommand = "iperf3-serve"

var measurements = map[string]load.Measurement{"iperf3": iperf3TCP, "iperf3-udp": iperf3UDP, "wrk": wrk}

// Commands are the names that Command knows.
var Commands = append([]string{serveCommand}, slices.Sorted(maps.Keys(measurements))...)

// Command is the main function of the processes that run the programs. args do not include its own name.
func Command(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("expected one of the commands %q", Commands)
	}
	if args[0] == serveCommand {
		return serveIPerf3(ctx, args[1:], stdin, stdout)
	}
	if measure, ok := measurements[args[0]]; ok {
		return load.Measure(ctx, measure, args[1:], stdout)
	}
	return fmt.Errorf("unknown command %q: expected one of %q", args[0], Commands)
}

// Find returns the path of iperf3 or wrk, or a *process.MissingError. Debian's packages have the names of the programs.
func Find(program string) (string, error) { return process.Find(program, "apt-get install "+program) }

// prepare makes the command that runs a program. The program ends with ctx, and with the thread that starts it.
func prepare(ctx context.Context, program string, args ...string) (*exec.Cmd, error) {
	path, err := Find(program)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}

// output runs cmd and returns its standard output, even on an error, since some programs explain errors there.
func output(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runtime.LockOSThread() // the end of the thread would end the program
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), err
}

// seconds returns d in whole seconds, the programs' unit, rounded up.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// unsupported refuses an option that a program does not have.
func unsupported(program, what string) error {
	return fmt.Errorf("%s: it cannot measure with %s: use the load generator's own command", program, what)
}

var errNothing = errors.New("nothing was received")
