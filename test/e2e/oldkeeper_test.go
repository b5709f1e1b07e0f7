package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tapestry.dev/tapestry/netstack/keeper/keepertest"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/probe"
)

// oldKeeper is a keeper of the first version: SOCKET.
func oldKeeper(ctx context.Context, args []string) error { return keepertest.Serve(ctx, args[0]) }

// cutAll ends the conversations, all of which must have been cut.
func (c conversations) cutAll(t *testing.T, why string) {
	t.Helper()
	for addr, h := range decode[map[string]probe.Held](t, c.end(t)) {
		if h.Error == "" {
			t.Errorf("the connection to %s outlived %s", addr, why)
		}
	}
}

// TestKeeperOfFirstVersion has an agent of this version with a keeper of the first one, which knows nothing of sockets
// of relayed connections. What is translated goes on when the agent is killed; what is relayed is cut, and that is told
// before. When the keeper is replaced while the agent lives, the next one gets everything, and what is relayed goes on
// from the next agent on.
func TestKeeperOfFirstVersion(t *testing.T) {
	dir := t.TempDir()
	script, replaced := filepath.Join(dir, "keeper"), filepath.Join(dir, "replaced")
	text := fmt.Sprintf("#!/bin/sh\nif [ -e %s ]; then exec %s \"$@\"; fi\nexec %s e2e-helper old-keeper \"$3\"\n", replaced, theProduct(t), self(t))
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	c := upWith(t, 2*testTime, lab.Options{Name: "oldkeeper", Keeper: script}, baseYAML)
	c.begin(t, lab.Outside(), "serve-outside", "server", "9300")
	translated := []string{at(c.addr(t, "svc/near", false), 81), at(c.addr(t, "svc/far", true), 81)}
	out, in := at(c.addr(t, "outside", false), 9300), at(c.addr(t, "node-1", false), 30081)
	told := func(st *lab.Status) bool {
		return problem(st, "node node-1", "end when its agent does", "the keeper is of an earlier version")
	}
	c.until(t, "what will be cut is told", told)
	lasting := c.talk(t, lab.Pod("client"), translated...)
	egress, nodePort := c.talk(t, lab.Pod("client"), out), c.talk(t, lab.Outside(), in)
	c.killed(t, "node-1")
	egress.cutAll(t, "an agent whose keeper is of the first version")
	nodePort.cutAll(t, "an agent whose keeper is of the first version")
	c.answered(t, lab.Pod("client"), "tcp", out, "server")
	c.until(t, "the next agent tells it, too", told)

	if err := os.WriteFile(replaced, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pid := nodeOf(c.status(t), "node-1").PID
	if err := c.KillKeeper(c.ctx, "node-1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the agent has given the next keeper everything", func(*lab.Status) bool {
		b, _ := os.ReadFile(filepath.Join(c.Dir, "nodes", "node-1", "agent.log"))
		return strings.Contains(string(b), "a new keeper holds everything again")
	})
	if n := nodeOf(c.status(t), "node-1"); n.PID != pid {
		t.Errorf("the agent did not live on: %+v", n)
	}
	c.killed(t, "node-1")
	c.until(t, "nothing will be cut any more", func(st *lab.Status) bool { return !told(st) })
	relayed, fromOutside := c.talk(t, lab.Pod("client"), out), c.talk(t, lab.Outside(), in)
	c.killed(t, "node-1")
	t.Logf("the longest silences were %s, %s and %s", lasting.unharmed(t), relayed.unharmed(t), fromOutside.unharmed(t))
}

// TestAgentOfFirstVersion has an agent of the first version, as far as its keeper can tell, between two of this one.
// The keeper lets go of what that one does not know: the sockets of node ports, which it opens itself, and those of
// relayed connections, whose far ends are told. What is translated waits meanwhile and goes on.
func TestAgentOfFirstVersion(t *testing.T) {
	c := upFor(t, 2*testTime, "oldagent", baseYAML)
	c.begin(t, lab.Outside(), "serve-outside", "server", "9300")
	out, in := at(c.addr(t, "outside", false), 9300), at(c.addr(t, "node-1", false), 30081)
	lasting := c.talk(t, lab.Pod("client"), at(c.addr(t, "svc/near", false), 81), at(c.addr(t, "svc/far", true), 81))
	nodePort := c.talk(t, lab.Outside(), in)
	if err := c.KillAgent(c.ctx, "node-1", syscall.SIGTERM, true); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the agent is gone", func(st *lab.Status) bool { return nodeOf(st, "node-1").PID == 0 })
	keys, release, err := keepertest.Claim(c.ctx, filepath.Join(c.Dir, "nodes", "node-1", "keeper.sock"), "node-1")
	if err != nil {
		t.Fatal(err)
	}
	nodePort.cutAll(t, "an agent of the first version") // a client is told at once
	for _, key := range keys {
		if strings.HasPrefix(key, "socket/") {
			t.Errorf("the keeper still has %s", key)
		}
	}
	for _, key := range []string{"flows", "host", "wireguard"} {
		if !slices.Contains(keys, key) {
			t.Errorf("the keeper has nothing under %q: %v", key, keys)
		}
	}
	if a := c.ask(t, lab.Outside(), "tcp", in); a.Error != "refused" {
		t.Errorf("a node port that nobody opened: %+v", a)
	}
	release()
	if err := c.StartAgent(c.ctx, "node-1"); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the next agent is ready", func(st *lab.Status) bool { return nodeOf(st, "node-1").Agent == "ready" })
	c.reaches(t, lab.Outside(), "tcp", in, "near")
	c.reaches(t, lab.Pod("client"), "tcp", out, "server")
	t.Logf("the longest silence was %s", lasting.unharmed(t))
}
