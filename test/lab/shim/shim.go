// Package shim prepares a process of the lab from the inside. The process was just started in its namespaces. It mounts
// its own resolv.conf and hosts, sets its host name, gives up its capabilities when told to, and becomes the command.
package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Arg is the argument that makes the executable call Main.
const Arg = "lab-shim"

// The descriptors that the shim inherits in addition to stdio.
const (
	specFD   = 3
	reportFD = 4
)

// Spec describes a process.
type Spec struct {
	// Argv is the command. Its first element is looked up in the PATH of Env.
	Argv []string
	// Env is the whole environment.
	Env []string
	// Dir is the working directory; "" is the supervisor's.
	Dir string `json:",omitempty"`
	// Hostname is set when not empty. That needs a UTS namespace of the process's own.
	Hostname string `json:",omitempty"`
	// Mounts has files that are bound over others: from target to source. That needs a mount namespace of the process's
	// own.
	Mounts map[string]string `json:",omitempty"`
	// DropCapabilities gives up every capability for good, like an ordinary container.
	DropCapabilities bool `json:",omitempty"`
}

// Command returns a command that is not started yet. It runs exe as the shim, which waits until it is told what to
// become. The caller sets stdio and the session. After Start, even a failed one, the caller must call Become or Drop of
// the Order.
func Command(exe string) (*exec.Cmd, *Order, error) {
	ours, theirs := make([]*os.File, 0, 2), make([]*os.File, 0, 2)
	for range 2 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(append(ours, theirs...))
			return nil, nil, err
		}
		ours, theirs = append(ours, w), append(theirs, r)
	}
	ours[1], theirs[1] = theirs[1], ours[1] // the report goes the other way
	cmd := exec.Command(exe, Arg)
	cmd.Env = []string{}
	cmd.ExtraFiles = theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS}
	return cmd, &Order{spec: ours[0], report: ours[1], theirs: theirs}, nil
}

// Order tells a started shim what to become, once.
type Order struct {
	spec, report *os.File
	theirs       []*os.File
}

// Begun must be called after Start, even a failed one.
func (o *Order) Begun() { closeAll(o.theirs) }

// Become waits until the shim became what spec says and returns nil, or returns why it could not.
func (o *Order) Become(spec Spec) error {
	defer o.report.Close()
	err := json.NewEncoder(o.spec).Encode(spec)
	o.spec.Close()
	msg, rerr := io.ReadAll(o.report)
	switch {
	case len(msg) > 0:
		return errors.New(string(msg))
	case err != nil:
		return fmt.Errorf("tell the shim: %w", err)
	}
	return rerr
}

// Drop ends the shim.
func (o *Order) Drop() { closeAll([]*os.File{o.spec, o.report}) }

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Main is the shim. It returns an exit status only when the command could not be started.
func Main() int {
	// Capabilities belong to threads, and exec keeps those of the thread that calls it.
	runtime.LockOSThread()
	unix.CloseOnExec(specFD)
	unix.CloseOnExec(reportFD)
	if err := become(); err != nil {
		if _, werr := unix.Write(reportFD, []byte(err.Error())); werr != nil {
			fmt.Fprintln(os.Stderr, "this is started by the lab only:", err)
		}
		return 127
	}
	return 0
}

func become() error {
	var spec Spec
	f := os.NewFile(specFD, "spec")
	if err := json.NewDecoder(f).Decode(&spec); errors.Is(err, io.EOF) {
		return nil // it was dropped
	} else if err != nil {
		return fmt.Errorf("read the specification: %w", err)
	}
	if len(spec.Argv) == 0 {
		return errors.New("empty command")
	}
	if err := mountAll(spec.Mounts); err != nil {
		return err
	}
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("set host name %s: %w", spec.Hostname, err)
		}
	}
	if spec.Dir != "" {
		if err := os.Chdir(spec.Dir); err != nil {
			return fmt.Errorf("working directory: %w", err)
		}
	}
	path, err := lookPath(spec.Argv[0], spec.Env)
	if err != nil {
		return err
	}
	if spec.DropCapabilities {
		if err := dropCapabilities(); err != nil {
			return fmt.Errorf("drop capabilities: %w", err)
		}
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, spec.Argv, spec.Env))
}

// mountAll binds the files, and mounts /sys so that it shows the namespace's own devices.
func mountAll(mounts map[string]string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for target, source := range mounts {
		err := unix.Mount(source, target, "", unix.MS_BIND, "")
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("this machine has no %s to mount the pod's over: create it, an empty file will do", target)
		}
		if err != nil {
			return fmt.Errorf("mount %s over %s: %w", source, target, err)
		}
	}
	// A machine that hides parts of /sys refuses this mount (mount_too_revealing, fs/namespace.c). Only /sys/class/net
	// is then another namespace's, and few programs read it.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "")
	return nil
}

// lookPath finds a command in the PATH of env, since the shim's own environment is empty.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v // the last PATH counts
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if file := filepath.Join(dir, name); executable(file) == nil {
			return file, nil
		}
	}
	return "", notFound(name)
}

func notFound(name string) error {
	return fmt.Errorf("command %q not found: images are not used, a command has to be a program of this machine in PATH", name)
}

func executable(file string) error {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return notFound(file)
	case err != nil:
		return err
	case info.IsDir() || info.Mode()&0o111 == 0:
		return fmt.Errorf("command %q is no executable file", file)
	}
	return nil
}

// dropCapabilities leaves the thread, and what it executes, without any capability. User 0 would otherwise get back at
// exec what the bounding set allows (capabilities(7)).
func dropCapabilities() error {
	for c := uintptr(0); c <= lastCap(); c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("bounding set: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient set: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}

// lastCap returns the highest capability that this kernel knows. For a higher one PR_CAPBSET_READ fails with EINVAL.
func lastCap() uintptr {
	last := uintptr(0)
	for c := uintptr(0); c < 64; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break
		}
		last = c
	}
	return last
}
