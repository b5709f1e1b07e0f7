package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSupervised: an agent that is killed again and again serves again each time, at once, and says how often it was
// started again. It ends with its supervisor.
func TestSupervised(t *testing.T) {
	n := newMachine(t)
	var log output
	n.stderr, n.supervised = &log, true
	n.start()
	n.ready()
	web, client := n.sandbox("c1", "web"), n.sandbox("c2", "client")
	web.works("ADD")
	web.serves(8080)
	client.works("ADD")
	addr, _, _ := strings.Cut(web.addrs(), "/")
	var outages []time.Duration
	for i := range 4 {
		n.until("pods reach each other", func() bool { got, err := client.asks(addr + ":8080"); return got == "c1" && err == nil })
		n.until("it says how often it was started again", func() bool { told, err := n.api.Node(t.Context()); return err == nil && told.Restarts == i })
		told, err := n.api.Node(t.Context())
		if err != nil || i > 0 && told.LastEnd != "killed by signal 9 (killed)" {
			t.Errorf("run %d is told that the one before was %q, %v", i, told.LastEnd, err)
		}
		if i == 3 {
			break
		}
		pid := n.supervisedProcess()
		killed := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.until("another agent is ready", func() bool { return strings.Count(log.String(), "the node is ready") == i+2 })
		outages = append(outages, time.Since(killed).Round(time.Millisecond))
	}
	t.Logf("ready again %v after each SIGKILL", outages)
	if text := log.String(); strings.Count(text, "pause=0s") != 3 {
		t.Errorf("there are pauses:\n%s", text)
	}
	pid := n.supervisedProcess()
	if err := n.agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := n.agent.Wait(); err != nil {
		t.Errorf("told to end, the supervisor ends with %v", err)
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the agent outlives it: %v", err)
	}
}

// supervisedProcess returns the process ID of the supervisor's child.
func (n *machine) supervisedProcess() (pid int) {
	n.t.Helper()
	n.until("the supervisor has its agent", func() bool {
		parent := fmt.Sprint(n.agent.Process.Pid)
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, stat := range stats {
			text, _ := os.ReadFile(stat)
			_, after, _ := strings.Cut(string(text), ") ")
			if f := strings.Fields(after); len(f) > 1 && f[0] != "Z" && f[1] == parent {
				pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(stat)))
				return true
			}
		}
		return false
	})
	return pid
}
