package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/lab"
)

// TestQuotas has a pod with limits of packets and of new connections that floods another one. It is held to both, its
// neighbour notices nothing, and the limits follow the annotations while the pod is there.
func TestQuotas(t *testing.T) {
	limited := func(packets, connections string) string {
		pod := strings.Replace(podYAML("greedy", "node-1"), "probe-period: 50ms", "probe-period: 50ms, tapestry.dev/egress-packets-per-second: \""+packets+
			"\", tapestry.dev/egress-connections-per-second: \""+connections+"\"", 1)
		return baseYAML + pod
	}
	c := up(t, "e2e-quotas", limited("500", "1"))
	far := at(c.addr(t, "far", false), 9000)
	await := func(what string, ok func(p localapi.Pod) bool) {
		t.Helper()
		var last localapi.Pod
		ctx, cancel := context.WithTimeout(c.ctx, patience)
		defer cancel()
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			pods, err := localapi.Pods.Ask(ctx, &localapi.Client{Path: c.Dir + "/nodes/node-1/api.sock"})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range pods {
				if p.Name == "default/greedy" {
					last = p
				}
			}
			if ok(last) {
				tick.Stop()
				return
			}
			select {
			case <-ctx.Done():
				t.Fatalf("waiting until %s: the last row was %+v", what, last)
			case <-tick.C:
			}
		}
	}
	await("the limits hold", func(p localapi.Pod) bool { return p.PacketsPerSecond == 500 && p.FlowsPerSecond == 1 })
	begun, answered := time.Now(), 0
	for range 8 {
		if a := c.ask(t, lab.Pod("greedy"), "tcp", far, "--timeout", "200ms"); a.Error == "" {
			answered++
		}
	}
	if most := 2 + time.Since(begun).Seconds(); float64(answered) > most {
		t.Errorf("%d connections in %s, want %.1f at most", answered, time.Since(begun), most)
	}
	flood := c.begin(t, lab.Pod("greedy"), "new-flows", far, at(c.addr(t, "far", false), 9001))
	await("the flood is held back", func(p localapi.Pod) bool { return p.OverFlows > 100 && p.OverPackets > 100 })
	for range 5 {
		c.answered(t, lab.Pod("client"), "tcp", far, "far")
	}
	for _, reason := range []string{"over-flows", "over-packets"} {
		if n := c.drops(t, "node-1", reason); n < 100 {
			t.Errorf("%s was counted %v times", reason, n)
		}
	}
	flood.end(t)
	c.edit(t, limited("500", "many"))
	c.until(t, "the bad value is told", func(st *lab.Status) bool {
		return problem(st, "Pod default/greedy", "tapestry.dev/egress-connections-per-second", `"many" is no limit`, "expected a whole number from 1")
	})
	await("only the other limit holds", func(p localapi.Pod) bool { return p.PacketsPerSecond == 500 && p.FlowsPerSecond == 0 })
	for range 5 {
		c.answered(t, lab.Pod("greedy"), "tcp", far, "far")
	}
}
