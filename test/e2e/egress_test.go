package e2e

import (
	"strconv"
	"testing"
	"time"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/test/awake"
	"tapestry.dev/tapestry/test/lab"
)

// TestEgressPortsAgain: a pod with two hundred client ports makes many more connections than that to one server
// outside, which closes each of them first. Each port is used again soon after its last connection ended.
func TestEgressPortsAgain(t *testing.T) {
	c := up(t, "e2e-ports-again", nodesYAML+podYAML("client", "node-1"))
	c.begin(t, lab.Outside(), "load-serve", ":"+strconv.Itoa(loadPort))
	_, stderr, code, err := c.Output(c.ctx, lab.Pod("client"), "sh", "-c", "echo 40000 40199 > /proc/sys/net/ipv4/ip_local_port_range")
	if err != nil || code != 0 {
		t.Fatalf("give the pod few ports: exit status %d, %v: %s", code, err, stderr)
	}
	addr := at(c.addr(t, "outside", false), loadPort)
	clock := awake.Start()
	defer clock.Stop()
	for made := uint64(0); made < 1000; {
		made += c.measure(t, lab.Pod("client"), "crr", addr, load.Options{Time: 500 * time.Millisecond}).Transactions
		if took := clock.Now(); took > 20*time.Second { // ports that are not used again make 200 a minute
			t.Fatalf("%d connections in %s", made, took)
		}
	}
}
