package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"tapestry.dev/tapestry/netstack/tap"
)

// Daemon is a program of others with all processes that it starts. It runs until Close.
type Daemon struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer // valid after ended
	ended  chan struct{}
	close  func() error
}

// StartDaemon starts cmd inside ns (nil: here) and returns when ready returns nil. The context of ready ends when the
// program ends, or when it takes too long to become ready.
func StartDaemon(ns *tap.Namespace, cmd *exec.Cmd, ready func(context.Context) error) (*Daemon, error) {
	d := &Daemon{cmd: cmd, ended: make(chan struct{})}
	d.close = sync.OnceValue(d.stop)
	cmd.Stderr = &d.stderr
	// The program has a process group of its own, so that the processes it starts end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = stopTimeout
	if err := ns.Start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	go func() {
		cmd.Wait()
		close(d.ended)
		cancel()
	}()
	if err := ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s did not become ready: %w", cmd.Path, err), d.Close())
	}
	return d, nil
}

// said returns what the program wrote to its standard error.
func (d *Daemon) said() string { return strings.TrimSpace(d.stderr.String()) }

// Close ends the program, by force if it does not end on request. Close returns an error when the program ended
// earlier.
func (d *Daemon) Close() error { return d.close() }

func (d *Daemon) stop() error {
	group := -d.cmd.Process.Pid
	select {
	case <-d.ended:
		syscall.Kill(group, syscall.SIGKILL)
		return fmt.Errorf("%s ended by itself (%v): %s", strings.Join(d.cmd.Args, " "), d.cmd.ProcessState, d.said())
	default:
	}
	syscall.Kill(group, syscall.SIGTERM)
	late := time.AfterFunc(stopTimeout, func() { syscall.Kill(group, syscall.SIGKILL) })
	defer late.Stop()
	<-d.ended
	return nil
}

// retryInterval is how often Eventually tries.
const retryInterval = 5 * time.Millisecond

// Eventually calls try until it succeeds or ctx ends, and returns the last error.
func Eventually(ctx context.Context, try func(context.Context) error) error {
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryInterval):
		}
	}
}

// Listening returns a function that waits until a TCP server accepts connections at addr inside ns.
func Listening(ns *tap.Namespace, addr netip.AddrPort) func(context.Context) error {
	return func(ctx context.Context) error {
		return Eventually(ctx, func(ctx context.Context) error {
			return ns.Do(func() error {
				c, err := new(net.Dialer).DialContext(ctx, "tcp", addr.String())
				if err != nil {
					return err
				}
				return c.Close()
			})
		})
	}
}
