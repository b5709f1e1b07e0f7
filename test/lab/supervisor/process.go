package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/lab/shim"
)

// place is where a process runs.
type place struct {
	ns       *tap.Namespace
	hostname string
	mounts   map[string]string
}

// stdio are a new process's streams. A terminal becomes its controlling terminal.
type stdio struct {
	in, out, err *os.File
	terminal     bool
}

// process is a started command, leader of a group of its own.
type process struct {
	cmd *exec.Cmd
	// whole ends with its leader what is left of the group.
	whole bool
}

// start starts a command and returns when it runs, or why it does not.
func start(exe string, at place, spec shim.Spec, io stdio) (*process, error) {
	spec.Hostname, spec.Mounts = at.hostname, at.mounts
	cmd, report, err := shim.Command(exe, spec)
	if err != nil {
		return nil, err
	}
	// A nil *os.File must not become an io.Reader that is not nil.
	if io.in != nil {
		cmd.Stdin = io.in
	}
	cmd.Stdout, cmd.Stderr = io.out, io.err
	// Sessions are what the scheduler divides processors among (sched(7), autogroup). Where no terminal asks for one, pods and
	// agents share the lab's.
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setpgid = io.terminal, !io.terminal
	cmd.SysProcAttr.Setctty = io.terminal // of descriptor 0, the default
	err = at.ns.Start(cmd)
	why := report.Wait()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Argv[0], err)
	}
	if why != nil {
		_ = cmd.Wait() // its status says no more than why
		return nil, why
	}
	return &process{cmd: cmd}, nil
}

// PID is the process's number, which is also that of its group.
func (p *process) PID() int { return p.cmd.Process.Pid }

// Signal signals the process's group.
func (p *process) Signal(s syscall.Signal) error { return unix.Kill(-p.PID(), s) }

// Wait waits for the process.
func (p *process) Wait() int {
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1
	}
	if p.whole {
		_ = p.Signal(syscall.SIGKILL) // nobody may be left
	}
	return exitCode(p.cmd.ProcessState)
}

// exitCode is as shells have it: 128 and the signal's number where one ended the process.
func exitCode(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}

// killInside ends every process in a network namespace.
func killInside(ns *tap.Namespace) error {
	// Where /proc is not that of our process namespace, its numbers are others.
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
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
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
