package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/test/lab"
)

// narrowTime limits how long a test of narrow underlays may take: each waits for probes, which come every half minute.
const narrowTime = 4 * time.Minute

// pathMTU returns the size of the largest packet that a node believes to fit through the tunnel to another node.
func (c *cluster) pathMTU(t *testing.T, node, peer string) int {
	t.Helper()
	got := tapestryLab(t, "status", "--name", c.Name, node, "-o", "json")
	for _, p := range decode[struct {
		Peers []struct {
			Name string
			MTU  int
		}
	}](t, got.stdout).Peers {
		if p.Name == peer {
			return p.MTU
		}
	}
	t.Fatalf("%s does not know %s: exit status %d, %s", node, peer, got.code, got.stderr)
	return 0
}

// TestNarrowPath narrows the path between the nodes to less than IPv6 needs inside the tunnel. Everything goes on in
// both families, clients with their own address too, and the nodes find out when the path is good again, although the
// kernel remembers for ten minutes what a router said.
func TestNarrowPath(t *testing.T) {
	const size = 1 << 18
	c := upFor(t, narrowTime, "narrow", baseYAML+transferService("near", 30091)+transferService("far", 30092))
	wide := c.pathMTU(t, "node-1", "node-2")
	for _, path := range []struct {
		mtu  int
		icmp []string
	}{{1320, nil}, {1200, []string{"--no-icmp"}}} {
		flags := append([]string{"impair", "--name", c.Name, "node-1", "node-2", "--mtu", strconv.Itoa(path.mtu)}, path.icmp...)
		if got := tapestryLab(t, flags...); got.code != 0 {
			t.Fatalf("exit status %d: %s", got.code, got.stderr)
		}
		c.transfersEverywhere(t, size)
		if mtu := c.pathMTU(t, "node-1", "node-2"); mtu > path.mtu-60 {
			t.Errorf("a path of %d bytes is believed to carry packets of %d inside the tunnel", path.mtu, mtu)
		}
		if n := c.counters(t, "node-1").Of("tapestry_link_total")["cut"]; n == 0 {
			t.Errorf("on a path of %d bytes nothing was cut", path.mtu)
		}
	}
	if got := tapestryLab(t, "impair", "--name", c.Name, "node-1", "node-2", "--off"); got.code != 0 {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	began := time.Now()
	c.until(t, "node-1 and node-2 know that the path is good again", func(*lab.Status) bool {
		return c.pathMTU(t, "node-1", "node-2") == wide && c.pathMTU(t, "node-2", "node-1") == wide
	})
	t.Logf("found after %v", time.Since(began))
	c.transfersEverywhere(t, size)
}

// TestSmallUnderlay brings clusters up whose underlay has no room for IPv6's least MTU inside the tunnel, or no IPv6 at
// all. Nodes come up, pods reach one another in both families, and the node says what that costs.
func TestSmallUnderlay(t *testing.T) {
	for _, mtu := range []int{1300, 1200} {
		t.Run(strconv.Itoa(mtu), func(t *testing.T) {
			c := upWith(t, narrowTime, lab.Options{Name: fmt.Sprintf("small-%d", mtu), UnderlayMTU: mtu}, baseYAML)
			server := c.begin(t, lab.Pod("far"), "transfer-serve", ":7000")
			for _, v6 := range []bool{false, true} {
				got := decode[transferred](t, c.run(t, lab.Pod("client"), "transfer", at(c.addr(t, "far", v6), 7000), "262144"))
				if !got.There || !got.Back {
					t.Errorf("IPv6 %v: what arrived is not what was sent: %+v", v6, got)
				}
				c.answered(t, lab.Pod("client"), "tcp", at(c.addr(t, "svc/far", v6), 81), "far")
				c.answered(t, lab.Node("node-1"), "tcp", at(c.addr(t, "far", v6), 9000), "far")
			}
			server.end(t)
			out := tapestryLab(t, "doctor", "--name", c.Name, "node-1").stdout
			contains(t, out, fmt.Sprintf("raise the MTU of the network between the nodes to %d", addressing.MinMTU+80))
			if strings.Contains(out, "the kernel has no IPv6") {
				t.Errorf("what is wrong is told wrongly:\n%s", out)
			}
		})
	}
}
