// Package userns runs a program inside namespaces of its own. Its changes to the kernel's network then need no root and
// cannot affect the machine. The program starts itself twice more: once as a small init, which is process 1 of the new
// namespaces, and once as the init's child, which does the program's work. When the init ends, the kernel ends
// everything inside. The init ends when its child or its starter ends.
//
// Tests use it as
//
//	func TestMain(m *testing.M) { userns.Main(m) }
//
// A program calls Maybe first in main, and starts itself with Command.
package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The environment variable says which of the three a process is. Its value ends with the executable's identity, so that
// another program which inherits the variable ignores it.
const (
	stageVar   = "TAPESTRY_NAMESPACES"
	stageInit  = "init"
	stageChild = "inside"
)

// Options are the options of Command.
type Options struct {
	// Args are the arguments, without the program's name.
	Args []string
	// Env is the environment; nil is that of this process.
	Env []string
	// Files become descriptors 3, 4, ... of the program inside.
	Files []*os.File
	// Detach lets the program live on when its starter ends.
	Detach bool
}

// Main runs a package's tests (m is a *testing.M) inside namespaces and ends the process with their status. The tests
// are root there. Their network has only a loopback interface, which is up.
func Main(m interface{ Run() int }) {
	Maybe()
	if Inside() {
		os.Exit(m.Run())
	}
	os.Exit(Run(Options{Args: os.Args[1:]}))
}

// Maybe turns this process into the init if it was started as one; then it does not return. It must be called before
// anything else.
func Maybe() {
	if s, ok := parseStage(stageInit); ok {
		os.Exit(runInit(s))
	}
}

// Inside reports whether this process, or an ancestor running the same executable, was started by Command.
func Inside() bool {
	_, ok := parseStage(stageChild)
	return ok
}

// Run starts this executable inside namespaces with the standard streams of this process, passes signals on, and
// returns an exit status: that of the program, or 128 and the signal's number when a signal ended it. When namespaces
// cannot be had it writes one sentence to the standard error and returns 1.
func Run(o Options) int {
	// The kernel sends the parent-death signal when the starting thread ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := newRelay()
	defer signals.stop()
	cmd, err := Command(o)
	if err == nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err = cmd.Start(); err != nil {
			err = Explain(err)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go signals.to(cmd.Process, onTerminal())
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status(cmd.ProcessState.Sys().(syscall.WaitStatus))
}

// Command prepares the start of this executable inside new network, mount and PID namespaces. Without the capabilities
// for these it also makes a new user namespace, in which the caller is root. When /dev/net/tun cannot be used the error
// says in one sentence what is missing; Explain does the same for an error of cmd.Start. Unless o.Detach is set, call
// cmd.Start in a goroutine that is locked to its thread and lives until the program ends: see exec.Cmd.SysProcAttr.
func Command(o Options) (*exec.Cmd, error) {
	if err := checkTUN(); err != nil {
		return nil, err
	}
	next, err := stage{files: len(o.Files), terminal: !o.Detach && onTerminal()}.env(stageInit)
	if err != nil {
		return nil, err
	}
	env := o.Env
	if env == nil {
		env = os.Environ()
	}
	cmd := exec.Command("/proc/self/exe", o.Args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(without(env, stageVar), next)
	cmd.ExtraFiles = o.Files
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if !o.Detach {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if !privileged() {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		// setgroups stays denied. Otherwise an ordinary user may not map a group (user_namespaces(7)).
		cmd.SysProcAttr.GidMappingsEnableSetgroups = false
	}
	return cmd, nil
}

// stage is what a starter tells the process that it starts.
type stage struct {
	files    int  // how many from descriptor 3 on
	terminal bool // ^C reaches all processes without being passed on
}

func (s stage) env(name string) (string, error) {
	id, err := identity()
	return fmt.Sprintf("%s=%s:%d:%t:%s", stageVar, name, s.files, s.terminal, id), err
}

// parseStage reports whether this process is at the stage of that name, and returns what its starter said.
func parseStage(name string) (s stage, ok bool) {
	f := strings.SplitN(os.Getenv(stageVar), ":", 4)
	if len(f) != 4 || f[0] != name {
		return s, false
	}
	id, err := identity()
	if err != nil || f[3] != id {
		return s, false
	}
	s.terminal = f[2] == "true"
	s.files, err = strconv.Atoi(f[1])
	return s, err == nil && s.files >= 0
}

// identity returns a text that identifies the executable file of this process.
func identity() (string, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &st); err != nil {
		return "", fmt.Errorf("/proc must be mounted: %w", err)
	}
	return fmt.Sprintf("%d.%d", st.Dev, st.Ino), nil
}

// privileged reports whether namespaces can be made without a user namespace.
func privileged() bool {
	if os.Geteuid() != 0 {
		return false
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN
	return data[0].Effective&need == need
}

// relay catches the signals that ask for an end. It must exist before the process that it passes them on to. A signal
// that comes in between would end this process, since the Go runtime makes process 1 exit on signals that the kernel
// would keep from it.
type relay chan os.Signal

func newRelay() relay {
	r := make(relay, 8)
	signal.Notify(r, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	return r
}

// to passes signals on to p. It leaves out those that the terminal sends on ^C and ^\, since they reach the whole
// process group, and so the processes inside, anyway.
func (r relay) to(p *os.Process, terminal bool) {
	for s := range r {
		if terminal && (s == syscall.SIGINT || s == syscall.SIGQUIT) {
			continue
		}
		_ = p.Signal(s)
	}
}

func (r relay) stop() {
	signal.Stop(r)
	close(r)
}

// onTerminal reports whether this process is in the foreground of a terminal.
func onTerminal() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func without(env []string, name string) []string {
	kept := make([]string, 0, len(env)+1)
	for _, e := range env {
		if !strings.HasPrefix(e, name+"=") {
			kept = append(kept, e)
		}
	}
	return kept
}

func status(w syscall.WaitStatus) int {
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}

// Mapped returns uid if this user namespace has it, and otherwise the user's own. The namespace of an ordinary user has
// no other (user_namespaces(7), uid_map).
func Mapped(uid int) int {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return os.Geteuid()
	}
	for line := range strings.Lines(string(b)) {
		var inside, outside, n int
		if k, _ := fmt.Sscan(line, &inside, &outside, &n); k == 3 && uid >= inside && uid-inside < n {
			return uid
		}
	}
	return os.Geteuid()
}
