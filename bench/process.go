package bench

import (
	"bufio"
	"bytes"
	"context"
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

// process is a child that says a line when it is ready and ends with its standard input, so that it never outlives this
// process, however that ends.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr bytes.Buffer // valid after Wait
	close  func() error
}

// start starts cmd inside ns (nil: here) and returns it with the first line it says.
func start(ns *tap.Namespace, cmd *exec.Cmd) (*process, string, error) {
	p := &process{cmd: cmd}
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
	line, err := p.tell(nil)
	if err != nil {
		return nil, "", err
	}
	return p, line, nil
}

// tell writes to the process and returns the line that it answers. On an error the process is gone.
func (p *process) tell(message []byte) (string, error) {
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
	return "", fmt.Errorf("did not become ready (%w): %w", err, p.Close())
}

func (p *process) name() string { return strings.Join(p.cmd.Args, " ") }

// Close ends the process, by force if it does not go by itself.
func (p *process) Close() error { return p.close() }

func (p *process) stop() error {
	p.stdin.Close()
	late := time.AfterFunc(stopTimeout, func() { p.cmd.Process.Kill() })
	defer late.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", p.name(), err, strings.TrimSpace(p.stderr.String()))
	}
	return nil
}

// output runs cmd inside ns to its end, or ctx's, and returns what it printed.
func output(ctx context.Context, ns *tap.Namespace, cmd *exec.Cmd) ([]byte, error) {
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
