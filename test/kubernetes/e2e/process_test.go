package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"tapestry.dev/tapestry/test/kubernetes/lab"
)

// program is the /proc directory of one of Tapestry's processes.
type program string

// tapestryOn finds the agent and the keeper of a node: the processes with these names in the node's PID namespace.
func tapestryOn(t *testing.T, n lab.Node) map[string]program {
	t.Helper()
	all := map[string]program{}
	out, err := onNode(context.Background(), n.Name, "sh", "-c", `for p in /proc/[0-9]*; do printf '%s ' "$p"; tr '\0' ' ' <"$p/cmdline"; echo; done 2>/dev/null`)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(out, "\n") {
		f := strings.Fields(line)
		if len(f) < 3 || filepath.Base(f[1]) != "tapestry" || (f[2] != "agent" && f[2] != "keeper") {
			continue
		}
		all[f[2]] = program(filepath.Join("/proc", strconv.Itoa(n.PID), "root", f[0]))
	}
	if len(all) != 2 {
		t.Fatalf("%s runs %v, want an agent and a keeper", n.Name, all)
	}
	return all
}

// descriptors counts a process's descriptors, and those of them that are TAPs, according to the kernel.
func (p program) descriptors(t *testing.T) (all, taps int) {
	t.Helper()
	fds, err := os.ReadDir(filepath.Join(string(p), "fdinfo"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		info, err := os.ReadFile(filepath.Join(string(p), "fdinfo", fd.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // closed meanwhile
			t.Fatal(err)
		}
		if strings.Contains(string(info), "\niff:") {
			taps++
		}
	}
	return len(fds), taps
}

// memory returns the resident memory of a process now, and its highest value, in bytes.
func (p program) memory(t *testing.T) (now, most int64) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(string(p), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		for name, to := range map[string]*int64{"VmRSS:": &now, "VmHWM:": &most} {
			if len(f) == 3 && f[0] == name {
				kilobytes, err := strconv.ParseInt(f[1], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				*to = kilobytes << 10
			}
		}
	}
	if now == 0 || most == 0 {
		t.Fatalf("%s says nothing of memory", p)
	}
	return now, most
}

// began returns when the process was started. The kernel knows this to 10 ms.
func (p program) began(t *testing.T) time.Time {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(string(p), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	// The text after the name begins with the third field. Field 22 counts hundredths of a second since the boot.
	_, after, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(after)
	if len(f) < 20 {
		t.Fatalf("%s/stat: %s", p, text)
	}
	ticks, err := strconv.ParseInt(f[19], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	return time.Now().Add(-time.Duration(now.Nano() - ticks*int64(10*time.Millisecond)))
}

// memories says how much memory the agent and the keeper of a node use.
func memories(t *testing.T, n lab.Node) string {
	t.Helper()
	all := tapestryOn(t, n)
	agent, most := all["agent"].memory(t)
	keeper, _ := all["keeper"].memory(t)
	return fmt.Sprintf("VmRSS of the agent %s (%s at the most) and of the keeper %s", megabytes(agent), megabytes(most), megabytes(keeper))
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
