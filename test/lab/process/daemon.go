package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// A daemon that ends is started again at once. A daemon that ends before it worked waits longer each time.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Options are the options of a Daemon.
type Options struct {
	// Name is the daemon's name in sentences, such as "the agent".
	Name string
	Log  *slog.Logger
	// Start starts the process.
	Start func() (*Process, error)
	// Worked reports whether the process that has ended was of use.
	Worked func() bool
	// Began is told that a process has started, and Ended why it has ended.
	Began func()
	Ended func(why string)
}

// Daemon is a process that is started again whenever it ends.
type Daemon struct {
	o    Options
	ctx  context.Context
	end  context.CancelFunc
	done sync.WaitGroup

	mu sync.Mutex
	// mu guards the fields below.
	process  *Process // nil while it is down
	next     *Process // takes the place of process when that ends
	stayDown bool
	wake     chan struct{} // closed when stayDown ends
	restarts int
}

// NewDaemon returns a Daemon that is not running yet.
func NewDaemon(o Options) *Daemon {
	d := &Daemon{o: o, wake: make(chan struct{})}
	d.ctx, d.end = context.WithCancel(context.Background())
	return d
}

// Run keeps the daemon running until Close.
func (d *Daemon) Run() { d.done.Go(d.live) }

// Close ends the daemon for good.
func (d *Daemon) Close() {
	d.end()
	_ = d.Signal(syscall.SIGKILL, true) // an error means that it is down already
	d.done.Wait()
	if p := d.takeNext(); p != nil {
		endNow(p)
	}
}

// Context returns a context that ends with Close.
func (d *Daemon) Context() context.Context { return d.ctx }

// Signal sends a signal to the process. With stayDown it is not started again when it ends.
func (d *Daemon) Signal(s syscall.Signal, stayDown bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stayDown = d.stayDown || stayDown
	if d.process == nil {
		return fmt.Errorf("%s is not running", d.o.Name)
	}
	return d.process.cmd.Process.Signal(s)
}

// Succeed replaces the process. It starts the next one beside it, waits until ready returns, and ends the one that runs
// by SIGTERM. When that has ended, the next one is in its place. After an error the process that runs goes on.
func (d *Daemon) Succeed(start func() (*Process, error), ready func(context.Context) error) error {
	next, err := start()
	if err != nil {
		return err
	}
	if err := ready(d.ctx); err != nil {
		endNow(next)
		return err
	}
	d.mu.Lock()
	if d.process == nil || d.next != nil || d.ctx.Err() != nil {
		d.mu.Unlock()
		endNow(next)
		return fmt.Errorf("%s is not running, or is being replaced already", d.o.Name)
	}
	d.next = next
	err = d.process.cmd.Process.Signal(syscall.SIGTERM)
	d.mu.Unlock()
	if errors.Is(err, os.ErrProcessDone) { // then the next one is in its place all the same
		return nil
	}
	return err
}

// takeNext returns the process that takes the place of one that has ended, or nil.
func (d *Daemon) takeNext() *Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.next
	d.next = nil
	return p
}

func endNow(p *Process) {
	_ = p.Signal(syscall.SIGKILL) // it may have ended
	p.Wait()
}

// Resume starts a daemon again that was told to stay down.
func (d *Daemon) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stayDown {
		d.stayDown = false
		close(d.wake)
		d.wake = make(chan struct{})
	}
}

// Running returns the ID of the process, 0 while it is down, and how often it was restarted.
func (d *Daemon) Running() (pid, restarts int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.process != nil {
		pid = d.process.PID()
	}
	return pid, d.restarts
}

// live starts the process again and again.
func (d *Daemon) live() {
	wait := firstRetry
	for first := true; ; first = false {
		if !d.awaitUp() {
			return
		}
		if !first {
			d.mu.Lock()
			d.restarts++
			d.mu.Unlock()
		}
		code, err := d.once()
		if d.ctx.Err() != nil {
			return
		}
		worked, why := d.o.Worked(), fmt.Sprintf("%s ended with exit code %d", d.o.Name, code)
		if err != nil {
			why = err.Error()
		}
		d.o.Ended(why)
		if worked {
			wait = firstRetry
			d.o.Log.Warn(why)
			continue
		}
		d.o.Log.Warn(why+" before it was ready", "again in", wait)
		select {
		case <-d.ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, lastRetry)
	}
}

// awaitUp waits while the daemon must stay down. It returns false when the daemon is closed.
func (d *Daemon) awaitUp() bool {
	for {
		d.mu.Lock()
		down, wake := d.stayDown, d.wake
		d.mu.Unlock()
		if !down {
			return d.ctx.Err() == nil
		}
		select {
		case <-d.ctx.Done():
			return false
		case <-wake:
		}
	}
}

// once runs the process once, from its start, or from that of its successor, to its end.
func (d *Daemon) once() (code int, err error) {
	p := d.takeNext()
	if p == nil {
		if p, err = d.o.Start(); err != nil {
			return 0, err
		}
	}
	d.mu.Lock()
	d.process = p
	if d.ctx.Err() != nil {
		_ = p.Signal(syscall.SIGKILL)
	}
	d.mu.Unlock()
	d.o.Began()
	code = p.Wait()
	d.mu.Lock()
	d.process = nil
	d.mu.Unlock()
	return code, nil
}
