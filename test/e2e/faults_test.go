package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/test/lab"
)

// stall limits how long a connection may be silent while an agent restarts. It does not count the time in which the
// machine lets nobody run.
const stall = time.Second

// TestFaults kills agents and impairs the underlay of one lab under traffic.
func TestFaults(t *testing.T) {
	c := up(t, "faults", baseYAML)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"no capability", noCapability},
		{"agent killed ten times", killedTenTimes},
		{"both agents killed", bothKilled},
		{"bad underlay", badUnderlay},
		{"edits", edits},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
}

// noCapability checks in /proc that the agents have no capabilities.
func noCapability(t *testing.T, c *cluster) {
	for _, n := range c.status(t).Nodes {
		out, _, code, err := c.Output(c.ctx, lab.Node(n.Name), "cat", fmt.Sprintf("/proc/%d/status", n.PID))
		if err != nil || code != 0 {
			t.Fatal(code, err)
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			if !strings.Contains(out, set+":\t0000000000000000\n") {
				t.Errorf("the agent of %s has capabilities, %s is not 0:\n%s", n.Name, set, out)
			}
		}
		if !strings.Contains(out, "NoNewPrivs:\t1\n") {
			t.Errorf("the agent of %s could gain privileges:\n%s", n.Name, out)
		}
	}
}

// everywhere returns the addresses of a server on each node, as pod and as Service, in both families.
func everywhere(t *testing.T, c *cluster) []string {
	t.Helper()
	var addrs []string
	for _, v6 := range []bool{false, true} {
		addrs = append(addrs,
			at(c.addr(t, "near", v6), 9000), at(c.addr(t, "far", v6), 9000),
			at(c.addr(t, "svc/near", v6), 81), at(c.addr(t, "svc/far", v6), 81))
	}
	return addrs
}

// killed kills agents and waits until their successors are ready.
func (c *cluster) killed(t *testing.T, nodes ...string) {
	t.Helper()
	before := c.status(t)
	for _, n := range nodes {
		if err := c.KillAgent(c.ctx, n, syscall.SIGKILL, false); err != nil {
			t.Fatal(err)
		}
	}
	c.until(t, "the agents are back", func(st *lab.Status) bool {
		return !slices.ContainsFunc(nodes, func(name string) bool {
			n := nodeOf(st, name)
			return n.Agent != "ready" || n.PID == nodeOf(before, name).PID
		})
	})
}

func killedTenTimes(t *testing.T, c *cluster) {
	talking := c.talk(t, lab.Pod("client"), everywhere(t, c)...)
	other := c.talk(t, lab.Pod("far"), at(c.addr(t, "far", false), 9000))
	before := nodeOf(c.status(t), "node-1").Restarts
	for range 10 {
		c.killed(t, "node-1")
		c.answered(t, lab.Pod("client"), "tcp", at(c.addr(t, "far", false), 9000), "far")
	}
	if got := nodeOf(c.status(t), "node-1").Restarts - before; got != 10 {
		t.Errorf("the agent was restarted %d times, want 10", got)
	}
	worst := talking.unharmed(t)
	t.Logf("the longest silence was %s", worst)
	// A connection whose retransmission falls into the next restart waits for that restart as well.
	if worst > 2*stall {
		t.Errorf("a connection was silent for %s, want at most %s", worst, 2*stall)
	}
	other.unharmed(t)
	c.answered(t, lab.Outside(), "tcp", at(c.addr(t, "node-1", false), 30082), "far")
}

func bothKilled(t *testing.T, c *cluster) {
	talking := c.talk(t, lab.Pod("client"), everywhere(t, c)...)
	c.killed(t, "node-1", "node-2")
	// The agent that was ready first had no peer to shake hands with. A little later everything works as before.
	for _, addr := range everywhere(t, c) {
		if a := c.ask(t, lab.Pod("client"), "tcp", addr, "--timeout", "20s"); a.Error != "" {
			t.Errorf("%s: %s", addr, a.Error)
		}
	}
	t.Logf("the longest silence was %s", talking.unharmed(t))
}

// badUnderlay transfers data over a path that loses, delays, reorders and duplicates, and compares hashes.
func badUnderlay(t *testing.T, c *cluster) {
	if got := tapestryLab(t, "impair", "--name", c.Name, "node-1", "node-2",
		"--loss", "1%", "--delay", "2ms", "--jitter", "1ms", "--reorder", "2%", "--duplicate", "2%", "--seed", "42"); got.code != 0 {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	contains(t, strings.Join(c.status(t).Impairments, "; "), "node-1 - node-2", "loss 1%", "delay 2ms")
	const size = 3 << 20
	for _, v6 := range []bool{false, true} {
		server := c.begin(t, lab.Pod("far"), "transfer-serve", ":7000")
		got := decode[transferred](t, c.run(t, lab.Pod("client"), "transfer", at(c.addr(t, "far", v6), 7000), strconv.Itoa(size)))
		t.Logf("%d bytes each way in %d ms", got.Bytes, got.Milliseconds)
		if !got.There || !got.Back || got.Bytes != size {
			t.Errorf("what arrived is not what was sent: %+v", got)
		}
		server.end(t)
	}
	if got := tapestryLab(t, "impair", "--name", c.Name, "node-1", "node-2", "--off"); got.code != 0 || len(c.status(t).Impairments) > 0 {
		t.Errorf("exit status %d: %s; impairments %v", got.code, got.stderr, c.status(t).Impairments)
	}
}

// edits adds and removes a pod, a node and a Service. The connections of others go on.
func edits(t *testing.T, c *cluster) {
	talking := c.talk(t, lab.Pod("client"), everywhere(t, c)...)
	pids := func(st *lab.Status) (all []int) {
		for _, name := range []string{"client", "near", "far"} {
			all = append(all, podOf(st, name).PIDs...)
		}
		return append(all, nodeOf(st, "node-1").PID, nodeOf(st, "node-2").PID)
	}
	before := pids(c.status(t))
	more := "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-3}\n" + podYAML("guest", "node-3") + serviceYAML("guest", "guest", 30083)
	st := c.edit(t, baseYAML+more)
	if len(st.Nodes) != 3 || len(st.Pods) != 4 || nodeOf(st, "node-3").Agent != "ready" {
		t.Fatalf("a node and a pod were added: %+v", st)
	}
	guest, service := c.addr(t, "guest", false), c.addr(t, "svc/guest", false)
	c.reaches(t, lab.Pod("client"), "tcp", at(guest, 9000), "guest")
	c.reaches(t, lab.Pod("far"), "udp", at(service, 81), "guest")
	c.reaches(t, lab.Outside(), "tcp", at(c.addr(t, "node-2", false), 30083), "guest")
	c.reaches(t, lab.Pod("guest"), "tcp", at(c.addr(t, "svc/near", true), 81), "near")

	// The pod is removed first, then the rest.
	c.edit(t, baseYAML+strings.Replace(more, podYAML("guest", "node-3"), "", 1))
	c.until(t, "the pod is gone", func(st *lab.Status) bool { return podOf(st, "guest").Name == "" })
	c.until(t, "a Service without pod refuses", func(*lab.Status) bool {
		return c.ask(t, lab.Pod("client"), "tcp", at(service, 81)).Error == "refused"
	})
	st = c.edit(t, baseYAML)
	if len(st.Nodes) != 2 {
		t.Errorf("node-3 is still there: %+v", st.Nodes)
	}
	if slices.ContainsFunc(st.Services, func(s lab.ServiceStatus) bool { return s.Name == "guest" }) {
		t.Errorf("the Service is still there: %+v", st.Services)
	}
	c.until(t, "the NodePort is closed", func(*lab.Status) bool {
		return c.ask(t, lab.Outside(), "tcp", at(c.addr(t, "node-2", false), 30083)).Error == "refused"
	})
	if after := pids(c.status(t)); !slices.Equal(before, after) {
		t.Errorf("others were restarted: %v became %v", before, after)
	}
	talking.unharmed(t)
}

// TestSupervisorKilled ends the supervisor of one lab and the init of another with SIGKILL. Nothing of these labs is
// left, and 'lab down' removes their folders.
func TestSupervisorKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lab.yaml")
	if err := os.WriteFile(path, []byte(nodesYAML+podYAML("near", "node-1")), 0o600); err != nil {
		t.Fatal(err)
	}
	state, err := lab.DefaultStateDir()
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]traces{}
	for name, victim := range map[string]string{"killed-1": "supervisor", "killed-2": "init"} {
		if got := tapestryLab(t, "up", "--name", name, "-f", path, "--detach", "--wait"); got.code != 0 {
			t.Fatalf("exit status %d: %s", got.code, got.stderr)
		}
		dir := filepath.Join(state, name)
		left[name] = tracesOf(t, dir)
		if err := syscall.Kill(processOf(t, dir, victim), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		left[name].gone(t)
		got := tapestryLab(t, "ps", "--name", name)
		if got.code != 1 {
			t.Errorf("exit status %d, want 1", got.code)
		}
		contains(t, got.stderr, "lab \""+name+"\" has crashed", "'tapestry-lab down' removes its folder", dir)
	}
	// One lab is alive, and without a name all labs go down.
	if got := tapestryLab(t, "down", "--name", "killed-1"); got.code != 0 || got.stderr != "" {
		t.Errorf("exit status %d: %s", got.code, got.stderr)
	}
	if names, err := lab.Names(state); err != nil || slices.Contains(names, "killed-1") || !slices.Contains(names, "killed-2") {
		t.Errorf("the labs are %v, %v; want killed-2", names, err)
	}
	if got := tapestryLab(t, "up", "--name", "alive", "-f", path, "--detach", "--wait"); got.code != 0 {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	alive := tracesOf(t, filepath.Join(state, "alive"))
	if got := tapestryLab(t, "down", "--all"); got.code != 0 || got.stderr != "" {
		t.Errorf("exit status %d: %s", got.code, got.stderr)
	}
	alive.gone(t)
	if names, err := lab.Names(state); err != nil || len(names) > 0 {
		t.Errorf("labs are left: %v, %v", names, err)
	}
}

// TestForegroundKilled ends 'up' and 'demo' in the foreground, by ^C and by SIGKILL. Their labs end with them.
func TestForegroundKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lab.yaml")
	if err := os.WriteFile(path, []byte(nodesYAML+podYAML("near", "node-1")), 0o600); err != nil {
		t.Fatal(err)
	}
	state, err := lab.DefaultStateDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		args   []string
		signal syscall.Signal
		until  string // what the command prints when it is up
	}{
		{"up-int", []string{"up", "--name", "up-int", "-f", path, "--wait"}, syscall.SIGINT, "lab up-int is up"},
		{"up-kill", []string{"up", "--name", "up-kill", "-f", path, "--wait"}, syscall.SIGKILL, "lab up-kill is up"},
		{"demo-int", []string{"demo", "--json", "--name", "demo-int"}, syscall.SIGINT, `"name":"up"`},
		{"demo-kill", []string{"demo", "--json", "--name", "demo-kill"}, syscall.SIGKILL, `"name":"up"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), self(t), test.args...)
			cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir()) // a folder that a killed demo cannot remove
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewScanner(stdout)
			for in.Scan() && !strings.Contains(in.Text(), test.until) {
			}
			dir := filepath.Join(state, test.name)
			left := tracesOf(t, dir)
			if err := cmd.Process.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			for in.Scan() {
			}
			_ = cmd.Wait() // a signal ended it
			left.gone(t)
			if test.signal == syscall.SIGKILL {
				if got := tapestryLab(t, "down", "--name", test.name); got.code != 0 {
					t.Errorf("exit status %d: %s", got.code, got.stderr)
				}
			}
			noLab(t, test.name)
		})
	}
}

// processOf returns a lab's init, the process in the lab's pid file, or its supervisor, the init's only child.
func processOf(t *testing.T, dir, which string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, err := strconv.Atoi(strings.Fields(string(b))[0])
	if err != nil || which == "init" {
		return first
	}
	parent := regexp.MustCompile(fmt.Sprintf(`(?m)^PPid:\t%d$`, first))
	for _, p := range processes(t) {
		status, _ := os.ReadFile(p + "/status")
		if cmd, _ := os.ReadFile(p + "/cmdline"); parent.Match(status) && strings.Contains(string(cmd), "supervise") {
			pid, _ := strconv.Atoi(filepath.Base(p))
			return pid
		}
	}
	t.Fatalf("the lab in %s has no supervisor", dir)
	return 0
}

// TestKeeperKilled kills the keeper of a node under traffic. When the agent has given the next keeper everything back,
// the test kills the agent. No connection breaks.
func TestKeeperKilled(t *testing.T) {
	c := up(t, "keeper", baseYAML)
	held := func() (keys []string) {
		kept, err := keeper.Dial(c.ctx, filepath.Join(c.Dir, "nodes", "node-1", "keeper.sock"))
		if err != nil {
			return nil // the keeper is being started
		}
		defer kept.Close()
		items, err := kept.List()
		if err != nil {
			return nil
		}
		for _, it := range items {
			it.File.Close()
			keys = append(keys, it.Key)
		}
		slices.Sort(keys)
		return keys
	}
	var before []string
	// Sockets of node ports come with the endpoints of their Services: of two, for TCP and UDP in both families.
	c.until(t, "the keeper holds all there is", func(*lab.Status) bool {
		before = held()
		sockets := len(slices.DeleteFunc(slices.Clone(before), func(key string) bool { return !strings.HasPrefix(key, "socket/") }))
		return slices.Contains(before, "flows") && slices.Contains(before, "host") && sockets == 8
	})
	talking := c.talk(t, lab.Pod("client"), at(c.addr(t, "near", false), 9000), at(c.addr(t, "far", false), 9000))
	pid := nodeOf(c.status(t), "node-1").PID
	if err := c.KillKeeper(c.ctx, "node-1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the next keeper held what the last one did", func(*lab.Status) bool {
		now := held() // and sockets of node ports whose pods became ready meanwhile
		return !slices.ContainsFunc(before, func(key string) bool { return !slices.Contains(now, key) })
	})
	if n := nodeOf(c.status(t), "node-1"); n.PID != pid || n.Agent != "ready" {
		t.Errorf("the agent was harmed: %+v", n)
	}
	if err := c.KillAgent(c.ctx, "node-1", syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the next agent is ready", func(st *lab.Status) bool {
		n := nodeOf(st, "node-1")
		return n.Agent == "ready" && n.PID != pid
	})
	if worst := talking.unharmed(t); worst > stall {
		t.Errorf("the longest silence was %v", worst)
	}
}
