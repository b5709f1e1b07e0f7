package e2e

import (
	"context"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/lab"
)

// idle opens connections that have one thing answered and then say nothing, until the input ends: NETWORK COUNT ADDR.
// It says how many were answered.
func idle(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	answered := 0
	for range count {
		c, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, args[0], args[2])
		if err != nil {
			continue
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("hello\n")); err != nil {
			continue
		}
		if _, err := c.Read(make([]byte, 1000)); err == nil {
			answered++
		}
	}
	started()
	<-ctx.Done()
	return print(answered)
}

// TestOutsideConnections: what connections of clients outside cost an agent while nothing happens on them, each by a
// NodePort. The bounds are several times what was measured. They are half of what a session would take that held the
// buffer for its replies, 64 KiB.
func TestOutsideConnections(t *testing.T) {
	const count = 1500
	c := up(t, "outside", baseYAML)
	api := &localapi.Client{Path: filepath.Join(c.Dir, "nodes", "node-1", "api.sock")}
	// measure returns heap and stacks in bytes, and goroutines, when garbage was just collected, and the agent's RSS.
	// The heap is the least of several collections.
	measure := func() [4]float64 {
		t.Helper()
		last, least, drops := 0.0, math.Inf(1), 0 // asking makes garbage, so that there is a collection in the end
		for {
			list, err := api.Counters(c.ctx)
			if err != nil {
				t.Fatal(err)
			}
			heap := list.Get("go_memstats_heap_alloc_bytes")
			if heap < last {
				drops++
				least = min(least, heap)
			}
			if last = heap; drops == 4 {
				now := nodeOf(c.status(t), "node-1")
				u := decode[used](t, c.run(t, lab.Node("node-1"), "usage", fmt.Sprint(now.PID)))
				return [4]float64{least, list.Get("go_memstats_stack_inuse_bytes"), list.Get("go_goroutines"), float64(u.RSSKiB) * 1024}
			}
		}
	}
	for _, k := range []struct {
		name, network string
		port          uint16
		bytes         float64 // at most
	}{
		{"UDP to a pod of this node", "udp", 30081, 32 << 10},
		{"UDP to a pod of another node", "udp", 30082, 32 << 10},
		{"TCP to a pod of this node", "tcp", 30081, 32 << 10},
		{"TCP to a pod of another node", "tcp", 30082, 48 << 10},
	} {
		t.Run(k.name, func(t *testing.T) {
			before := measure()
			clients := c.begin(t, lab.Outside(), "idle", k.network, fmt.Sprint(count), at(c.addr(t, "node-1", false), k.port))
			after := measure()
			answered := decode[int](t, clients.end(t))
			each := func(i int) float64 { return (after[i] - before[i]) / float64(answered) }
			t.Logf("%d of %d answered; for each of them %.0f bytes of heap, %.0f of stacks, %.1f goroutines, RSS %.0f", answered, count, each(0), each(1), each(2), each(3))
			if got := each(0) + each(1); got > k.bytes {
				t.Errorf("heap and stacks grew by %.0f bytes for each, want %.0f at most", got, k.bytes)
			}
		})
	}
}
