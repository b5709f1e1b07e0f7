package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"tapestry.dev/tapestry/test/lab"
)

// TestNodesThatAreGone: a pod and its node's processes go on asking pods of nodes that were removed. Each is told that
// nobody is there, and no packet goes round between host sockets and the host TAP, after a restart of the agent either.
// The range of node-3 is one that the agents know, that of node-4 came later.
func TestNodesThatAreGone(t *testing.T) {
	base := nodesYAML + podYAML("client", "node-1")
	third := "---\n{apiVersion: v1, kind: Node, metadata: {name: node-3}}\n" + podYAML("third", "node-3")
	fourth := "---\n{apiVersion: v1, kind: Node, metadata: {name: node-4}, spec: {podCIDRs: [10.78.4.0/24, \"fd00:78:4::/64\"]}}\n" + podYAML("fourth", "node-4")
	c := up(t, "gone", base+third)
	c.edit(t, base+third+fourth)
	c.ready(t)
	var gone []netip.Addr
	for _, pod := range []string{"third", "fourth"} {
		for _, v6 := range []bool{false, true} {
			a := c.addr(t, pod, v6)
			gone = append(gone, a)
			c.answered(t, lab.Pod("client"), "tcp", at(a, 9000), pod)
		}
	}
	c.edit(t, base)
	c.until(t, "the nodes are gone", func(s *lab.Status) bool { return len(s.Nodes) == 2 })
	for _, restarted := range []bool{false, true} {
		if restarted {
			c.killed(t, "node-1")
		}
		before := c.counters(t, "node-1").Of("tapestry_packets_total")["to-stack"]
		asked := 0.0
		for _, from := range []lab.Target{lab.Pod("client"), lab.Node("node-1")} {
			for _, a := range gone {
				asked += 2
				if got := c.ask(t, from, "tcp", at(a, 9000)); !strings.Contains(got.Error, "no route to host") {
					t.Errorf("%v connects to %s (restarted %v): %q %q, want no route to host", from, a, restarted, got.Pod, got.Error)
				}
				// Linux keeps ICMP host unreachable from an ordinary UDP socket.
				if got := c.ask(t, from, "udp", at(a, 9000), "--timeout", "200ms"); got.Error == "" {
					t.Errorf("%v asked %s (restarted %v), and %q answered", from, a, restarted, got.Pod)
				}
			}
		}
		after := c.counters(t, "node-1").Of("tapestry_packets_total")["to-stack"]
		t.Logf("restarted %v: %v questions, %v packets to the stack and host sockets", restarted, asked, after-before)
		if after-before > 3*asked {
			t.Errorf("restarted %v: for %v questions %v packets went to host sockets", restarted, asked, after-before)
		}
	}
}
