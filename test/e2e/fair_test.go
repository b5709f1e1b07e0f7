package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/lab"
)

// newFlows sends datagrams to servers that answer, from each port to each server in turn, until the input ends: ADDR...
func newFlows(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	var servers []netip.AddrPort
	for _, arg := range args {
		to, err := netip.ParseAddrPort(arg)
		if err != nil {
			return err
		}
		servers = append(servers, to)
	}
	const ports = 1<<16 - 1024
	sent := 0
	for n := 0; ctx.Err() == nil; n++ {
		from, to := 1024+n%ports, servers[n/ports%len(servers)]
		c, err := net.DialUDP("udp", &net.UDPAddr{Port: from}, net.UDPAddrFromAddrPort(to))
		if err != nil {
			continue // somebody else has the port
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

// floodedFlows returns the size of the flow table that TestFlowFlood fills: TAPESTRY_FLOOD_FLOWS, such as 262144, which
// is the agent's default, or else 4,096.
func floodedFlows(t *testing.T) int {
	text := os.Getenv("TAPESTRY_FLOOD_FLOWS")
	if text == "" {
		return 4096
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("TAPESTRY_FLOOD_FLOWS is %q: expected how many flows there are to be", text)
	}
	return n
}

// total returns the sum of a counter's values.
func total(list counter.List, name string) (n float64) {
	for _, v := range list.Find(name).Values {
		n += v.N
	}
	return n
}

// greedyYAML returns a pod with three UDP servers. Another pod can begin enough flows to them for the largest table.
func greedyYAML(name string) string {
	return strings.Replace(podYAML(name, "node-1"), `--udp, "9000"`, `--udp, "9000", --udp, "9001", --udp, "9002"`, 1)
}

// TestFlowFlood: two pods of a node keep beginning flows, all of which are answered, and fill the flow table. Meanwhile
// a flow that another pod begins succeeds at once, and that pod's existing flows go on.
func TestFlowFlood(t *testing.T) {
	flows := floodedFlows(t)
	c := upFor(t, testTime+time.Duration(flows)*time.Millisecond, "flow-flood", baseYAML+greedyYAML("greedy-1")+greedyYAML("greedy-2"), "--flows", fmt.Sprint(flows))
	api := &localapi.Client{Path: filepath.Join(c.Dir, "nodes", "node-1", "api.sock")}
	counters := func() counter.List {
		t.Helper()
		list, err := api.Counters(c.ctx)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	counted := func(name, label string) float64 { return counters().Of(name)[label] }
	talking := c.talk(t, lab.Pod("client"), at(c.addr(t, "svc/near", false), 81), at(c.addr(t, "svc/far", false), 81))
	var greedy []*helper
	begun := time.Now()
	for i := range 2 {
		other := c.addr(t, fmt.Sprint("greedy-", 2-i), false)
		greedy = append(greedy, c.begin(t, lab.Pod(fmt.Sprint("greedy-", i+1)), "new-flows", at(other, 9000), at(other, 9001), at(other, 9002)))
	}
	if err := c.WaitFor(c.ctx, func(*lab.Status) bool { return counted("tapestry_flows_freed_total", "from-own") > 4096 }); err != nil {
		t.Fatalf("waiting until the table is full: %v", err)
	}
	now := counters()
	held, room := total(now, "tapestry_flows"), total(now, "tapestry_flows_capacity")
	t.Logf("after %s there are %v flows, and room for %v", time.Since(begun).Round(time.Second), held, room)
	if room != float64(flows) || held < 0.99*room {
		t.Errorf("the table is not full: %v flows, and room for %v", held, room)
	}
	answered, worst := 0, time.Duration(0)
	for range 5 {
		for _, q := range []struct{ network, addr string }{
			{"tcp", at(c.addr(t, "svc/near", false), 81)}, {"udp", at(c.addr(t, "svc/far", false), 81)}, {"tcp", at(c.addr(t, "far", true), 9000)},
		} {
			begun := time.Now()
			// A lost datagram is a failure, however long the machine takes; a lost SYN, which is sent again, is told by
			// the counter below.
			a := c.ask(t, lab.Pod("client"), q.network, q.addr, "--timeout", "5s")
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
