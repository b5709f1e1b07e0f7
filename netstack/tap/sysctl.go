package tap

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// SetSysctl writes a kernel setting below net. in ns. The key is dotted or slashed, such as "net.ipv4.ip_forward". A
// key with an interface name that contains a dot has to be slashed.
func SetSysctl(ns *Namespace, key, value string) error {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return ns.Do(func() error { return writeSysctl(key, value) })
}

// SetCongestionControl sets the TCP congestion control of ns to the first of names that this kernel has and allows
// here. Outside of the machine's own namespace the kernel allows those in net.ipv4.tcp_allowed_congestion_control
// (tcp_set_default_congestion_control in net/ipv4/tcp_cong.c). If it allows none of names, the namespace keeps the
// machine's.
func SetCongestionControl(ns *Namespace, names ...string) error {
	for _, name := range names {
		err := SetSysctl(ns, "net.ipv4.tcp_congestion_control", name)
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return err
		}
	}
	return nil
}

// EnableUnprivilegedPing lets processes in ns open ICMP echo sockets without a capability (icmp(7), ping_group_range).
// It does so for all groups or, where the user namespace does not map all, for the caller's group.
func EnableUnprivilegedPing(ns *Namespace) error {
	const key = "net/ipv4/ping_group_range"
	return ns.Do(func() error {
		if writeSysctl(key, "0 2147483647") == nil {
			return nil
		}
		gid := os.Getegid()
		return writeSysctl(key, fmt.Sprintf("%d %d", gid, gid))
	})
}

func writeSysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %q: %w", key, value, err)
	}
	return nil
}

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + key)
	return strings.TrimSpace(string(b)), err
}
