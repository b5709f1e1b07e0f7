package userns

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// runInit is the init, process 1. It makes the namespaces usable, and starts this executable again with the same
// arguments, standard streams and the given number of extra files. It reaps orphans, passes signals on, and returns the
// child's exit status.
func runInit(s stage) int {
	signals := newRelay()
	defer signals.stop()
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	child, err := spawn(s.files)
	if err != nil {
		fmt.Fprintf(os.Stderr, "start %s inside its namespaces: %v\n", os.Args[0], err)
		return 1
	}
	go signals.to(child, s.terminal)
	for {
		var w syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &w, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			fmt.Fprintf(os.Stderr, "wait for children: %v\n", err)
			return 1
		case pid == child.Pid:
			return status(w)
		}
	}
}

func prepare() error {
	if os.Getpid() != 1 {
		return errors.New("the init must be process 1 of its namespaces: start it with userns.Command")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return refused("change mounts in the new namespaces", err)
	}
	// A container with a masked /proc may not mount another one (fs/namespace.c, mount_too_revealing). The old /proc
	// still answers for /proc/self, and for the reader's network namespace.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		fmt.Fprintf(os.Stderr, "cannot mount /proc for the new process namespace (%v): process numbers seen there are those outside\n", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return refused("bring up the loopback interface", err)
	}
	return nil
}

// spawn uses syscall.ForkExec because os.StartProcess would make the files blocking for every process that shares them.
func spawn(files int) (*os.Process, error) {
	next, err := stage{}.env(stageChild)
	if err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{Env: append(without(os.Environ(), stageVar), next)}
	for fd := range uintptr(3 + files) {
		attr.Files = append(attr.Files, fd)
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, attr)
	for fd := 3; fd < 3+files; fd++ {
		unix.Close(fd)
	}
	if err != nil {
		return nil, err
	}
	return os.FindProcess(pid)
}
