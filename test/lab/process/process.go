// Package process starts the processes of a lab. Each runs in its own place, and is started through a shim.
package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/lab/shim"
)

// hangup is how long a command may take to end after its terminal is gone.
const hangup = time.Second

// Place is where a process runs.
type Place struct {
	Namespace *tap.Namespace
	Hostname  string
	// Mounts has files that are bound over others: from target to source.
	Mounts map[string]string
}

// Stdio has a new process's streams; a nil stream is /dev/null. With Terminal all three streams are one terminal, which
// becomes the controlling terminal.
type Stdio struct {
	In, Out, Err *os.File
	Terminal     bool
}

// Process is a started command, leader of a group of its own.
type Process struct {
	// Whole makes Wait end the rest of the process group when the leader has ended.
	Whole bool

	cmd *exec.Cmd
}

// Start starts a command and returns when it runs, or why it does not run. exe is the program that acts as the shim.
func Start(exe string, at Place, spec shim.Spec, io Stdio) (*Process, error) {
	w, err := Prepare(exe, at, io)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Argv[0], err)
	}
	return w.Become(spec)
}

// Waiting is a process in its place that waits to be told which command to become.
type Waiting struct {
	cmd   *exec.Cmd
	order *shim.Order
	place Place
}

// Prepare begins a process without a command. Become or Drop must follow.
func Prepare(exe string, at Place, io Stdio) (*Waiting, error) {
	cmd, order, err := shim.Command(exe)
	if err != nil {
		return nil, err
	}
	// A nil *os.File would become an io.Reader that is not nil.
	if io.In != nil {
		cmd.Stdin = io.In
	}
	cmd.Stdout, cmd.Stderr = io.Out, io.Err
	// The scheduler divides processors among sessions (sched(7), autogroup). Without a terminal, pods and agents share
	// the lab's session.
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setpgid = io.Terminal, !io.Terminal
	cmd.SysProcAttr.Setctty = io.Terminal // descriptor 0 is the terminal
	err = at.Namespace.Start(cmd)
	order.Begun()
	if err != nil {
		order.Drop()
		return nil, err
	}
	return &Waiting{cmd, order, at}, nil
}

// Become makes the process the command, and returns when that runs, or why it does not run.
func (w *Waiting) Become(spec shim.Spec) (*Process, error) {
	spec.Hostname, spec.Mounts = w.place.Hostname, w.place.Mounts
	if err := w.order.Become(spec); err != nil {
		_ = w.cmd.Wait() // the error says more than the exit status
		return nil, err
	}
	return &Process{cmd: w.cmd}, nil
}

// Drop ends the process.
func (w *Waiting) Drop() {
	w.order.Drop()
	_ = w.cmd.Wait() // it ends with an error
}

// PID returns the process ID, which is also the ID of the process group.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process group.
func (p *Process) Signal(s syscall.Signal) error { return unix.Kill(-p.PID(), s) }

// Wait waits until the process ends and returns its exit code as in shells: 128+n when signal n ended it.
func (p *Process) Wait() int {
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1
	}
	if p.Whole {
		_ = p.Signal(syscall.SIGKILL) // the group may be empty
	}
	return exitCode(p.cmd.ProcessState)
}

// HangUp ends a command like the loss of its terminal does. ended is closed when the command has ended.
func (p *Process) HangUp(ended <-chan struct{}) {
	_ = p.Signal(syscall.SIGHUP)
	select {
	case <-ended:
		return
	case <-time.After(hangup):
	}
	_ = p.Signal(syscall.SIGKILL)
	<-ended
}

func exitCode(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}

// KillInside ends every process in a network namespace.
func KillInside(ns *tap.Namespace) error {
	// If /proc belongs to another PID namespace, its process IDs mean other processes.
	if self, err := os.Readlink("/proc/self"); err != nil || self != strconv.Itoa(os.Getpid()) {
		return nil
	}
	want, err := inode(ns.File())
	if err != nil {
		return err
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return err
	}
	for _, link := range links {
		var st unix.Stat_t
		if unix.Stat(link, &st) != nil || st.Ino != want {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(link))))
		if err == nil && pid > 1 && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // the process may have ended by itself
		}
	}
	return nil
}

func inode(f *os.File) (uint64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}
