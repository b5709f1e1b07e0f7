package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/lab"
)

// broken limits for how long connections between two nodes may be silent when one family's path between them breaks.
// The nodes find out and use the other family within a second, and TCP may wait as long again before it sends anew.
const broken = 3 * time.Second

// tunnel is what a node's agent says of the tunnel to another node.
type tunnel struct {
	Endpoint netip.AddrPort
	Silent   []netip.AddrPort
	problems []string
}

func (c *cluster) tunnel(t *testing.T, node, peer string) tunnel {
	t.Helper()
	got := tapestryLab(t, "status", "--name", c.Name, node, "-o", "json")
	all := decode[struct {
		Peers []struct {
			Name string
			tunnel
		}
		Problems []struct{ Text string }
	}](t, got.stdout)
	for _, p := range all.Peers {
		if p.Name == peer {
			for _, x := range all.Problems {
				p.problems = append(p.problems, x.Text)
			}
			return p.tunnel
		}
	}
	t.Fatalf("%s does not know %s: exit status %d, %s", node, peer, got.code, got.stderr)
	return tunnel{}
}

// TestOtherFamily breaks IPv4 between two nodes with addresses of both families. Connections go on over IPv6, the
// agents say so, and they return to IPv4 when that works again.
func TestOtherFamily(t *testing.T) {
	c := upFor(t, narrowTime, "family", baseYAML)
	uses := func(v6 bool) func(*lab.Status) bool {
		return func(*lab.Status) bool {
			a, b := c.tunnel(t, "node-1", "node-2"), c.tunnel(t, "node-2", "node-1")
			return a.Endpoint.Addr().Is6() == v6 && b.Endpoint.Addr().Is6() == v6 && (v6 || len(a.Silent)+len(b.Silent) == 0)
		}
	}
	c.until(t, "both nodes use IPv4", uses(false))
	talking := c.talk(t, lab.Pod("client"), everywhere(t, c)...)
	c.answered(t, lab.Pod("client"), "tcp", at(c.addr(t, "far", false), 9000), "far")
	if got := tapestryLab(t, "impair", "--name", c.Name, "node-1", "node-2", "--loss", "100%", "--family", "4"); got.code != 0 {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	began := time.Now()
	c.until(t, "both nodes use IPv6", uses(true))
	t.Logf("both use IPv6 after %v at most", time.Since(began).Round(time.Millisecond))
	for _, addr := range everywhere(t, c) {
		if a := c.ask(t, lab.Pod("client"), "tcp", addr, "--timeout", "20s"); a.Error != "" {
			t.Errorf("%s: %s", addr, a.Error)
		}
	}
	if worst := talking.unharmed(t); worst > broken {
		t.Errorf("a connection was silent for %s, want at most %s", worst, broken)
	} else {
		t.Logf("the longest silence was %s", worst)
	}
	told := false
	for _, pair := range [][2]string{{"node-1", "node-2"}, {"node-2", "node-1"}} {
		x := c.tunnel(t, pair[0], pair[1])
		told = told || len(x.Silent) == 1 && x.Silent[0].Addr().Is4() &&
			slices.ContainsFunc(x.problems, func(p string) bool { return strings.Contains(p, "it does not answer at "+x.Silent[0].String()) })
	}
	if !told {
		t.Errorf("neither node says that IPv4 does not work: %+v, %+v", c.tunnel(t, "node-1", "node-2"), c.tunnel(t, "node-2", "node-1"))
	}
	if got := tapestryLab(t, "impair", "--name", c.Name, "node-1", "node-2", "--off"); got.code != 0 {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	c.until(t, "both nodes use IPv4 again", uses(false))
}
