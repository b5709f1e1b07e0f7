package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const tun = "/dev/net/tun"

// checkTUN tries to open the TUN/TAP device file.
func checkTUN() error {
	fd, err := unix.Open(tun, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		return unix.Close(fd)
	}
	return explainTUN(err)
}

func explainTUN(err error) error {
	how := `load the driver with "sudo modprobe tun"`
	switch {
	case errors.Is(err, fs.ErrNotExist):
		how += `, or give a container the device with "--device /dev/net/tun"`
	case errors.Is(err, unix.EACCES):
		how = `allow it with "sudo chmod 0666 /dev/net/tun"`
	case errors.Is(err, unix.EPERM):
		how = `allow the container the device 10:200, for example with "--device /dev/net/tun"`
	}
	return fmt.Errorf("%s: %w: %s", tun, err, how)
}

// Explain turns the error of starting a Command into one sentence that says what is missing and how to allow it.
func Explain(err error) error {
	return refused("make namespaces", err)
}

// setting is a kernel setting that forbids user namespaces when it has the value bad.
type setting struct{ key, bad, good string }

var settings = []setting{
	{"user.max_user_namespaces", "0", "15000"},
	{"user.max_net_namespaces", "0", "15000"},
	{"user.max_pid_namespaces", "0", "15000"},
	{"user.max_mnt_namespaces", "0", "15000"},
	{"kernel.unprivileged_userns_clone", "0", "1"},
	{"kernel.apparmor_restrict_unprivileged_userns", "1", "0"},
}

// refused explains why the kernel refused what this process tried to do.
func refused(what string, err error) error {
	return refusedBy(what, err, func(key string) string {
		b, _ := os.ReadFile("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
		return strings.TrimSpace(string(b))
	})
}

func refusedBy(what string, err error, sysctl func(key string) string) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS) {
		for _, s := range settings {
			if sysctl(s.key) == s.bad {
				return fmt.Errorf(`%s: %w: allow it with "sudo sysctl -w %s=%s", or run as root`, what, err, s.key, s.good)
			}
		}
		return fmt.Errorf("%s: %w: run as root, or allow user namespaces (a container needs a seccomp profile that permits unshare and mount)", what, err)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%s: %w: the kernel must be built with CONFIG_USER_NS, CONFIG_NET_NS and CONFIG_PID_NS, or run as root", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
