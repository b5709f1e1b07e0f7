package node

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A Hierarchy is one of the machine's cgroup v1 hierarchies.
type Hierarchy struct {
	// Dir is where the hierarchy is mounted.
	Dir string
	// Options are those of its mount: "cpu", "cpu,cpuacct", "none,name=systemd".
	Options string
}

// Hierarchies lists the machine's hierarchies. A machine with cgroup v2 alone has none.
func Hierarchies() ([]Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Hierarchy
	s := bufio.NewScanner(f)
	for s.Scan() {
		if h, ok := hierarchy(s.Text()); ok && !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	return all, s.Err()
}

// hierarchy reads one line of mountinfo: "33 32 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu". It
// ignores mounts of a cgroup other than the root.
func hierarchy(line string) (Hierarchy, bool) {
	before, after, ok := strings.Cut(line, " - ")
	where, what := strings.Fields(before), strings.Fields(after)
	if !ok || len(where) < 5 || len(what) < 3 || what[0] != "cgroup" || where[3] != "/" {
		return Hierarchy{}, false
	}
	var options []string
	for _, o := range strings.Split(what[2], ",") {
		switch {
		case strings.HasPrefix(o, "name="):
			options = append(options, "none", o)
		case o != "rw" && o != "ro" && o != "xattr" && o != "clone_children" && !strings.HasPrefix(o, "release_agent="):
			options = append(options, o)
		}
	}
	return Hierarchy{Dir: where[4], Options: strings.Join(options, ",")}, len(options) > 0
}

// mounts gives the node its own view of the machine's file system.
func (c Config) mounts() error {
	hierarchies, err := Hierarchies()
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	saved := c.file("cgroup")
	if c.UserNS {
		if err := rbind("/sys/fs/cgroup", saved); err != nil {
			return err
		}
	}
	steps := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		// A new sysfs shows the interfaces of this network namespace. It hides the cgroups.
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"cgroup", "/sys/fs/cgroup", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=755"},
		{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	}
	for _, s := range steps {
		if err := unix.Mount(s.source, s.target, s.kind, s.flags, s.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", s.source, s.target, err)
		}
	}
	if c.UserNS {
		// Only a process with CAP_SYS_ADMIN on the machine can mount a hierarchy. A mounted hierarchy can be mounted
		// elsewhere as well.
		if err := rbind(saved, "/sys/fs/cgroup"); err != nil {
			return err
		}
		if err := unix.Unmount(saved, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", saved, err)
		}
		hierarchies = nil
	}
	for _, h := range hierarchies {
		if err := os.MkdirAll(h.Dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("cgroup", h.Dir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.Options); err != nil {
			return fmt.Errorf("mount cgroup %s on %s: %w", h.Options, h.Dir, err)
		}
	}
	for _, dir := range []string{"/run/netns", "/run/lock", "/run/containerd"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, path := range own {
		source := c.source(path)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", source, path, err)
		}
	}
	// Kubelet mounts volumes, and containers must see them.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the mounts: %w", err)
	}
	return c.tunDevice()
}

// rbind mounts from, and everything that is mounted below it, on the directory to as well.
func rbind(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", from, to, err)
	}
	return nil
}

// TunDevice is the path of the TUN/TAP device file.
const TunDevice = "/dev/net/tun"

// tunDevice makes the device file as distributions have it. Containers and small machines often lack it or reserve it
// for root. Inside a user namespace nobody can make device files.
func (c Config) tunDevice() error {
	if c.UserNS {
		return nil
	}
	return MakeTunDevice()
}

// MakeTunDevice makes the device file on the machine.
func MakeTunDevice() error {
	const path = TunDevice
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200)))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make %s: %w", path, err)
	}
	return os.Chmod(path, 0o666)
}

// sysctls sets what distributions set and a new network namespace lacks.
func (c Config) sysctls() error {
	values := map[string]string{}
	if !c.UserNS { // there nobody may change what a new network namespace has
		values["net/ipv4/ping_group_range"] = "0 2147483647"
	}
	if c.Forward {
		values["net/ipv4/ip_forward"] = "1"
	}
	for name, value := range values {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}
