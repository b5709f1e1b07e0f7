package bugreport

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/cmd/output"
)

// files are small files of the system that say what a node may do, and what it does. Patterns are those of
// filepath.Match. Whatever is not there is left out.
var files = []string{
	"/proc/version", "/etc/os-release", "/proc/loadavg", "/proc/meminfo", "/proc/self/limits", "/proc/self/status", "/proc/self/cgroup",
	"/proc/self/uid_map", "/proc/self/gid_map", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max",
	"/proc/pressure/cpu", "/proc/pressure/memory", "/etc/resolv.conf",
	"/proc/net/dev", "/proc/net/route", "/proc/net/ipv6_route", "/proc/net/snmp", "/proc/net/snmp6", "/proc/net/netstat", "/proc/net/sockstat",
	"/proc/sys/kernel/unprivileged_userns_clone", "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "/proc/sys/user/max_user_namespaces",
	"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding", "/proc/sys/net/ipv4/ip_local_port_range",
	"/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/ipv4/ping_group_range", "/proc/sys/net/ipv4/conf/*/rp_filter",
	"/proc/sys/net/core/[rw]mem_max", "/proc/sys/net/core/somaxconn", "/proc/sys/net/netfilter/nf_conntrack_count", "/proc/sys/net/netfilter/nf_conntrack_max",
}

// machine writes the files, each under its name.
func machine(ctx context.Context, w io.Writer) error {
	fmt.Fprintf(w, "%s %s/%s, %d processors\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Fprintf(w, "%s %s %s\n", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]))
	}
	for _, pattern := range files {
		names, _ := filepath.Glob(pattern) // its only error is of the pattern
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				b = []byte(err.Error())
			}
			if _, err := fmt.Fprintf(w, "\n== %s\n%s\n", name, strings.TrimRight(string(b), "\n")); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// interfaces writes the network interfaces with their addresses.
func interfaces(_ context.Context, w io.Writer) error {
	all, err := net.Interfaces()
	for _, nic := range all {
		addrs, _ := nic.Addrs() // one that has just gone has none
		output.Line(w, fmt.Sprintf("%s mtu %d %s %s %v", nic.Name, nic.MTU, nic.HardwareAddr, nic.Flags, addrs))
	}
	return err
}
