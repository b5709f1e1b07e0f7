package e2e

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/lab/rpc"
)

// traces lists what a lab has made, and what exists outside of it.
type traces struct {
	dir        string
	processes  []string // "/proc/123 456": a process and its start time, since IDs are used again
	interfaces []string
}

// tracesOf looks at all processes in the PID namespace of the lab in dir.
func tracesOf(t *testing.T, dir string) traces {
	t.Helper()
	b, err := os.ReadFile(rpc.PIDFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	space, err := os.Readlink("/proc/" + strings.Fields(string(b))[0] + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	out := traces{dir: dir, interfaces: interfaces(t)}
	var networks []string
	for _, p := range processes(t) {
		if ns, _ := os.Readlink(p + "/ns/pid"); ns != space {
			continue
		}
		out.processes = append(out.processes, p+" "+startOf(p))
		if ns, err := os.Readlink(p + "/ns/net"); err == nil && !slices.Contains(networks, ns) {
			networks = append(networks, ns)
		}
	}
	// A lab has the supervisor and its init, two agents and a server. All but the init have a network namespace.
	if len(out.processes) < 5 || len(networks) < 4 {
		t.Fatalf("a lab that is up has more than %+v in %v", out, networks)
	}
	return out
}

// startOf returns the start time of a process, in clock ticks.
func startOf(p string) string {
	b, _ := os.ReadFile(p + "/stat")
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return "" // the process has ended
	}
	return f[19]
}

func processes(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(p string) bool {
		_, err := strconv.Atoi(filepath.Base(p))
		return err != nil
	})
}

func interfaces(t *testing.T) []string {
	t.Helper()
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	slices.Sort(names)
	return names
}

// gone checks that nothing is left: no process of the lab and no other process that knows the lab's folder, no
// interface, and no namespace, which this process or a mount would have to hold. The kernel may need a moment for
// killed processes.
func (tr traces) gone(t *testing.T) {
	t.Helper()
	var left []string
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if left = tr.left(t); len(left) == 0 {
			break
		}
	}
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if now := interfaces(t); !slices.Equal(now, tr.interfaces) {
		t.Errorf("interfaces %v became %v", tr.interfaces, now)
	}
}

func (tr traces) left(t *testing.T) []string {
	t.Helper()
	var left []string
	for _, p := range processes(t) {
		cmd, _ := os.ReadFile(p + "/cmdline")
		if slices.Contains(tr.processes, p+" "+startOf(p)) || strings.Contains(string(cmd), tr.dir+"\x00") || strings.Contains(string(cmd), tr.dir+"/") {
			left = append(left, p+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	open, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range open {
		if to, _ := os.Readlink(fd); strings.HasPrefix(to, "net:[") || strings.HasPrefix(to, "mnt:[") {
			left = append(left, fd+" "+to)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), tr.dir) {
		left = append(left, "a mount on "+tr.dir)
	}
	return left
}
