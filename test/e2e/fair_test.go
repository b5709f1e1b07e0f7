package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/lab"
)

// newFlows sends datagrams to a server that answers, each from another port, until the input ends: ADDR.
func newFlows(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	to, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	sent := 0
	for port := uint16(1024); ctx.Err() == nil; port++ {
		if port < 1024 {
			continue
		}
		c, err := net.DialUDP("udp", &net.UDPAddr{Port: int(port)}, net.UDPAddrFromAddrPort(to))
		if err != nil {
			continue // somebody has the port
		}
		if _, err := c.Write([]byte("a new flow\n")); err == nil {
			sent++
		}
		c.Close()
		if sent == 1 {
			started()
		}
	}
	return print(sent)
}

// TestFlowFlood: two pods of a node begin flows without end, all of which are answered, and use the flow table up. What
// another pod begins meanwhile succeeds at once, and what it holds goes on.
func TestFlowFlood(t *testing.T) {
	const flows = 4096
	c := up(t, "flow-flood", baseYAML+podYAML("greedy-1", "node-1")+podYAML("greedy-2", "node-1"), "--flows", fmt.Sprint(flows))
	api := &localapi.Client{Path: filepath.Join(c.Dir, "nodes", "node-1", "api.sock")}
	counted := func(name, label string) float64 {
		t.Helper()
		list, err := api.Counters(c.ctx)
		if err != nil {
			t.Fatal(err)
		}
		return list.Of(name)[label]
	}
	talking := c.talk(t, lab.Pod("client"), at(c.addr(t, "svc/near", false), 81), at(c.addr(t, "svc/far", false), 81))
	var greedy []*helper
	for i := range 2 {
		greedy = append(greedy, c.begin(t, lab.Pod(fmt.Sprint("greedy-", i+1)), "new-flows", at(c.addr(t, fmt.Sprint("greedy-", 2-i), false), 9000)))
	}
	c.until(t, "the table is full", func(*lab.Status) bool {
		return counted("tapestry_flows_freed_total", "from-own") > flows
	})
	answered, worst := 0, time.Duration(0)
	for range 5 {
		for _, q := range []struct{ network, addr string }{
			{"tcp", at(c.addr(t, "svc/near", false), 81)}, {"udp", at(c.addr(t, "svc/far", false), 81)}, {"tcp", at(c.addr(t, "far", true), 9000)},
		} {
			begun := time.Now()
			a := c.ask(t, lab.Pod("client"), q.network, q.addr, "--timeout", "900ms")
			if a.Error != "" {
				t.Errorf("%s %s: %s", q.network, q.addr, a.Error)
				continue
			}
			answered++
			worst = max(worst, time.Since(begun))
		}
	}
	full := counted("tapestry_drops_total", "flows-full")
	t.Logf("%d of 15 new requests were answered, the slowest with its process after %s; %v packets found the table full", answered, worst, full)
	if answered != 15 || full != 0 {
		t.Errorf("%d of 15 new requests were answered; %v packets found the table full", answered, full)
	}
	t.Logf("the longest silence was %s", talking.unharmed(t))
	for _, g := range greedy {
		g.end(t)
	}
}
