package process

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"
)

const (
	// A daemon that ends is started again at once; one that ends before it worked waits longer and longer.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Options of a Daemon.
type Options struct {
	// Name is what it is called in sentences: "the agent".
	Name string
	Log  *slog.Logger
	// Start begins a life.
	Start func() (*Process, error)
	// Worked reports whether the life that is over was of use.
	Worked func() bool
	// Began and Ended are told of each life; the latter why it is over.
	Began func()
	Ended func(why string)
}

// Daemon is a process that is started again whenever it ends, over all its lives.
type Daemon struct {
	o    Options
	ctx  context.Context
	end  context.CancelFunc
	done sync.WaitGroup

	mu sync.Mutex
	// mu guards the rest.
	process  *Process // nil while it is down
	stayDown bool
	wake     chan struct{} // closed when stayDown ends
	restarts int
}

// NewDaemon gives one that does not live yet.
func NewDaemon(o Options) *Daemon {
	d := &Daemon{o: o, wake: make(chan struct{})}
	d.ctx, d.end = context.WithCancel(context.Background())
	return d
}

// Run lets it live until Close.
func (d *Daemon) Run() { d.done.Go(d.live) }

// Close ends it for good.
func (d *Daemon) Close() {
	d.end()
	_ = d.Signal(syscall.SIGKILL, true) // down is fine
	d.done.Wait()
}

// Context is done when it is closed.
func (d *Daemon) Context() context.Context { return d.ctx }

// Signal sends it a signal. With stayDown it is not started again when it ends.
func (d *Daemon) Signal(s syscall.Signal, stayDown bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stayDown = d.stayDown || stayDown
	if d.process == nil {
		return fmt.Errorf("%s is not running", d.o.Name)
	}
	return d.process.cmd.Process.Signal(s)
}

// Resume starts one that was told to stay down.
func (d *Daemon) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stayDown {
		d.stayDown = false
		close(d.wake)
		d.wake = make(chan struct{})
	}
}

// Running gives the number of its process, 0 while it is down, and how often it was started again.
func (d *Daemon) Running() (pid, restarts int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.process != nil {
		pid = d.process.PID()
	}
	return pid, d.restarts
}

// live starts it again and again.
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

// awaitUp waits while it is to stay down; false when it is to end.
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

// once is one life.
func (d *Daemon) once() (code int, err error) {
	p, err := d.o.Start()
	if err != nil {
		return 0, err
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
