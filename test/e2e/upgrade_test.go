package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/flow/flowtest"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/test/awake"
	"tapestry.dev/tapestry/test/lab"
)

// crowded is the result of many connections.
type crowded struct {
	Connections, Rounds int
	// Broken counts the connections that ended by themselves. Error is the error of one of them.
	Broken int
	Error  string
	// WorstMillis is the longest time between two answers, without the time in which the machine lets nobody run.
	WorstMillis float64
}

// crowd keeps COUNT TCP connections to each address until the input ends: COUNT ADDR... Each connection has a round
// trip ten times a second, and a last one at the end.
func crowd(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	clock := awake.Start()
	defer clock.Stop()
	var mu sync.Mutex
	var out crowded
	var begun, done sync.WaitGroup
	for _, addr := range args[1:] {
		untilAnswered(ctx, addr)
		for range count {
			begun.Add(1)
			done.Go(func() {
				rounds, worst, err := holdOne(ctx, clock, addr, sync.OnceFunc(begun.Done))
				mu.Lock()
				defer mu.Unlock()
				out.Connections++
				out.Rounds += rounds
				out.WorstMillis = max(out.WorstMillis, worst.Seconds()*1000)
				if err != nil {
					out.Broken++
					out.Error = err.Error()
				}
			})
		}
	}
	begun.Wait()
	started()
	done.Wait()
	return print(out)
}

// holdOne keeps one connection. begun is called once the connection has begun, or failed.
func holdOne(ctx context.Context, clock *awake.Clock, addr string, begun func()) (rounds int, worst time.Duration, err error) {
	defer begun()
	c, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil { // the greeting
		return 0, 0, err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for last := clock.Now(); ; {
		ended := ctx.Err() != nil
		_ = c.SetDeadline(time.Now().Add(2 * patience))
		text := fmt.Sprintf("round %d\n", rounds)
		if _, err := c.Write([]byte(text)); err != nil {
			return rounds, worst, err
		}
		got, err := r.ReadString('\n')
		if err == nil && !strings.Contains(got, strings.TrimSpace(text)) {
			err = fmt.Errorf("asked %q, and was answered %q", text, got)
		}
		if err != nil {
			return rounds, worst, err
		}
		now := clock.Now()
		worst, last = max(worst, now-last), now
		if rounds++; rounds == 1 {
			begun()
		}
		if ended {
			return rounds, worst, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// TestUpgrade: 1,000 connections to Services go on when their agent is replaced by one whose flow memory has a later
// version. The test rewrites the old agent's flows as version 1 would have left them. Meanwhile the Services get more
// endpoints: without its flow, every second connection would go to another pod and be reset.
func TestUpgrade(t *testing.T) {
	c := up(t, "upgrade", baseYAML)
	held := c.begin(t, lab.Pod("client"), "crowd", "250",
		at(c.addr(t, "svc/near", false), 81), at(c.addr(t, "svc/far", false), 81),
		at(c.addr(t, "svc/near", true), 81), at(c.addr(t, "svc/far", true), 81))

	second := func(name, node string) string {
		return strings.Replace(podYAML(name+"-2", node), "{app: "+name+"-2}", "{app: "+name+"}", 1)
	}
	c.edit(t, baseYAML+second("near", "node-1")+second("far", "node-2"))
	if err := c.KillAgent(c.ctx, "node-1", syscall.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the agent is gone", func(st *lab.Status) bool { return nodeOf(st, "node-1").PID == 0 })
	log := filepath.Join(c.Dir, "nodes", "node-1", "agent.log")
	before, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	written := c.leaveV1(t, "node-1")
	if written < 1000 {
		t.Fatalf("%d flows were written, want those of 1,000 connections", written)
	}
	if err := c.StartAgent(c.ctx, "node-1"); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the agent is back", func(st *lab.Status) bool { return nodeOf(st, "node-1").Agent == "ready" })
	got := decode[crowded](t, held.end(t))
	t.Logf("%d of %d connections broke; %d rounds, the longest silence was %.0f ms", got.Broken, got.Connections, got.Rounds, got.WorstMillis)
	if got.Connections != 1000 || got.Broken != 0 || got.Rounds < 2000 {
		t.Errorf("%+v", got)
	}
	after, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(after[len(before):]), "found the flows of the agent before", fmt.Sprintf("kept=%d", written), "lost=false")
}

// leaveV1 rewrites the flows that a node's agent has left into the form of version 1, and returns how many there are.
func (c *cluster) leaveV1(t *testing.T, node string) int {
	t.Helper()
	kept, err := keeper.Dial(c.ctx, filepath.Join(c.Dir, "nodes", node, "keeper.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if err := kept.Claim(c.ctx, node); err != nil {
		t.Fatal(err)
	}
	item, err := kept.Get("flows")
	if err != nil {
		t.Fatal(err)
	}
	defer item.File.Close()
	mem, err := keeper.Map(item.File)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }() // cannot fail for memory that was mapped
	table, err := flow.Open(mem, flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	capacity := table.Stats().Capacity
	old, err := keeper.NewMemory("flows-v1", flowtest.SizeV1(capacity))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	oldMem, err := keeper.Map(old)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(oldMem) }()
	n := flowtest.WriteV1(oldMem, capacity, table)
	if err := kept.Put("flows", nil, old); err != nil {
		t.Fatal(err)
	}
	return n
}
