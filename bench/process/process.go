// Package process starts the children of a benchmark: servers and load generators inside network namespaces. No child
// outlives this process, however this process ends.
package process

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"

	"tapestry.dev/tapestry/netstack/tap"
)

const (
	startTimeout = 10 * time.Second
	stopTimeout  = 3 * time.Second
)

// Spawn makes the command that runs one of bench's own programs. The first argument is the program's name.
type Spawn func(args ...string) *exec.Cmd

// Self is the usual Spawn: it runs this executable with "bench" before the arguments.
func Self(args ...string) *exec.Cmd {
	return exec.Command("/proc/self/exe", append([]string{"bench"}, args...)...)
}

// UntilEOF returns a context that ends with ctx and when in ends. It is the child's side of a rule: a child runs as
// long as its standard input is open. The goroutine that reads in ends with the process.
func UntilEOF(ctx context.Context, in io.Reader) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, in) // an error means that the standard input has ended
	}()
	return ctx, cancel
}

// Process is a child that prints a line when it is ready and ends when its standard input ends.
type Process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr bytes.Buffer // valid after Wait
	close  func() error
}

// Start starts cmd inside ns (nil: here), waits for its first line, and returns both.
func Start(ns *tap.Namespace, cmd *exec.Cmd) (*Process, string, error) {
	p := &Process{cmd: cmd}
	p.close = sync.OnceValue(p.stop)
	cmd.Stderr = &p.stderr
	var err error
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, "", err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	p.stdout = bufio.NewReader(stdout)
	if err := ns.Start(cmd); err != nil {
		return nil, "", fmt.Errorf("start %s: %w", p.name(), err)
	}
	line, err := p.Tell(nil)
	if err != nil {
		return nil, "", err
	}
	return p, line, nil
}

// Tell writes to the process and returns the line that it answers. On an error the process has ended.
func (p *Process) Tell(message []byte) (string, error) {
	late := time.AfterFunc(startTimeout, func() { p.cmd.Process.Kill() })
	defer late.Stop()
	_, err := p.stdin.Write(message)
	if err == nil {
		var line string
		if line, err = p.stdout.ReadString('\n'); err == nil {
			return strings.TrimSpace(line), nil
		}
	}
	p.cmd.Process.Kill()
	return "", errors.Join(fmt.Errorf("%s did not answer with a line: %w", p.name(), err), p.Close())
}

func (p *Process) name() string { return strings.Join(p.cmd.Args, " ") }

// Close ends the process, by force if it does not end on request.
func (p *Process) Close() error { return p.close() }

func (p *Process) stop() error {
	p.stdin.Close()
	late := time.AfterFunc(stopTimeout, func() { p.cmd.Process.Kill() })
	defer late.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", p.name(), err, strings.TrimSpace(p.stderr.String()))
	}
	return nil
}

// Output runs cmd inside ns until it or ctx ends, and returns what it printed.
func Output(ctx context.Context, ns *tap.Namespace, cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := ns.Start(cmd); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
	if err := cmd.Wait(); ctx.Err() != nil {
		return nil, ctx.Err()
	} else if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}
