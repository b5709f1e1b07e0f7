package e2e

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/probe"
)

// TestKeeperAndAgentKilled kills the keeper of a node while its agent is down, so that everything is lost that the two
// hand to each other. The host TAP comes back, which an agent without any capability attaches; pods of the node are
// without a network, are named, and make the node unready until they are made anew; other nodes are not concerned.
func TestKeeperAndAgentKilled(t *testing.T) {
	c := up(t, "lost", baseYAML)
	get := func(path string) probe.Fetched {
		stdout, _, code, err := c.Output(c.ctx, lab.Node("node-1"), self(t), "probe", "get", "http://127.0.0.1:10256"+path)
		if err != nil || code != 0 {
			return probe.Fetched{}
		}
		return decode[probe.Fetched](t, stdout)
	}
	far, near := at(c.addr(t, "far", false), 9000), at(c.addr(t, "near", false), 9000)
	c.answered(t, lab.Node("node-1"), "tcp", far, "far")

	if err := c.KillAgent(c.ctx, "node-1", syscall.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the agent is down", func(st *lab.Status) bool { return nodeOf(st, "node-1").PID == 0 })
	if err := c.KillKeeper(c.ctx, "node-1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the next keeper holds nothing", func(*lab.Status) bool {
		kept, err := keeper.Dial(c.ctx, filepath.Join(c.Dir, "nodes", "node-1", "keeper.sock"))
		if err != nil {
			return false
		}
		defer kept.Close()
		items, err := kept.List()
		for _, it := range items {
			it.File.Close()
		}
		return err == nil && len(items) == 0
	})
	if err := c.StartAgent(c.ctx, "node-1"); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the pods that lost their TAP are named", func(st *lab.Status) bool {
		return problem(st, "node node-1", "Pod default/near: it has no network") && problem(st, "node node-1", "Pod default/client: it has no network")
	})
	// The host TAP is back: processes of the node reach pods of other nodes, and other nodes those that are there.
	c.answered(t, lab.Node("node-1"), "tcp", far, "far")
	c.answered(t, lab.Node("node-2"), "tcp", far, "far")
	if a := c.ask(t, lab.Node("node-1"), "tcp", near); a.Error == "" {
		t.Errorf("a pod without a TAP answers: %+v", a)
	}
	var ready probe.Fetched
	c.until(t, "the node is not ready", func(*lab.Status) bool { ready = get("/readyz"); return ready.Status == 503 })
	if want := "[-]pods failed: 2 pods without a TAP (default/client, default/near): delete them"; !strings.Contains(ready.Body, want) || !strings.Contains(ready.Body, "[+]host ok\n[+]packets ok\n") {
		t.Errorf("readyz says %q, want %q", ready.Body, want)
	}
	for _, path := range []string{"/livez", "/healthz"} {
		if f := get(path); f.Status != 200 {
			t.Errorf("%s: %+v: an agent that is killed for it, or avoided, heals nothing", path, f)
		}
	}
	if got := tapestryLab(t, "status", "--name", c.Name, "node-1"); got.code == 0 || !strings.Contains(got.stdout, "2 pods without a TAP") {
		t.Errorf("status: exit status %d: %s", got.code, got.stdout)
	}
	if got := tapestryLab(t, "doctor", "--name", c.Name, "node-1"); got.code != 1 || !strings.Contains(got.stdout, "2 pods without a TAP") {
		t.Errorf("doctor: exit status %d: %s", got.code, got.stdout)
	}

	// The pods are made anew.
	c.edit(t, nodesYAML+podYAML("far", "node-2")+serviceYAML("near", "near", 30081)+serviceYAML("far", "far", 30082))
	c.until(t, "they are gone", func(st *lab.Status) bool { return len(st.Pods) == 1 })
	c.edit(t, baseYAML)
	c.answered(t, lab.Node("node-1"), "tcp", at(c.addr(t, "near", false), 9000), "near")
	c.answered(t, lab.Pod("client"), "tcp", far, "far")
	c.until(t, "the node is ready", func(*lab.Status) bool { return get("/readyz").Status == 200 })
}
