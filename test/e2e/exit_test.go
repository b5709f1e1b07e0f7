package e2e

import (
	"context"
	"net/netip"
	"strconv"
	"testing"

	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/serve"
)

// serveOutside is the built-in server of pods as a helper: it answers who asked. Args: its name, and its port.
func serveOutside(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	port, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	started()
	return serve.Run(ctx, serve.Config{Name: args[0], TCP: []int{port}, UDP: []int{port}})
}

// external are addresses of the namespace outside that are not on the network between the nodes.
var external = map[bool]netip.Addr{false: netip.MustParseAddr("203.0.113.10"), true: netip.MustParseAddr("2001:db8:113::10")}

func whole(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// TestRoutedOut has ranges that are not masqueraded: servers outside see pods' own addresses, and the network there
// routes them back. A kernel that does not forward is told, and never made to.
func TestRoutedOut(t *testing.T) {
	c := up(t, "e2e-routed-out", nodesYAML+podYAML("client", "node-1")+podYAML("other", "node-1"),
		"--non-masquerade-cidr="+whole(external[false]), "--non-masquerade-cidr="+whole(external[true]))
	for _, v6 := range []bool{false, true} {
		c.run0(t, lab.Outside(), "ip", "route", "replace", whole(c.addr(t, "client", v6)), "via", c.addr(t, "node-1", v6).String())
	}
	c.begin(t, lab.Outside(), "serve-outside", "server", "9300")
	forwards := func(v string) {
		c.set(t, "node-1", "net/ipv4/ip_forward", v)
		c.set(t, "node-1", "net/ipv6/conf/all/forwarding", v)
	}
	told := func(st *lab.Status) bool {
		return problem(st, "node node-1", "ranges of IPv4 that are not masqueraded", "set net.ipv4.ip_forward=1")
	}
	forwards("0")
	c.until(t, "that the node does not forward is told", told)
	forwards("1")
	c.until(t, "nothing is wrong", func(st *lab.Status) bool { return !problem(st, "node node-1", "not masqueraded") })
	for _, v6 := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			to := at(external[v6], 9300)
			c.reaches(t, lab.Pod("client"), network, to, "server")
			a := c.ask(t, lab.Pod("client"), network, to)
			if want := c.addr(t, "client", v6).String(); hostOf(a.Client) != want {
				t.Errorf("%s: the server outside sees %s, want the pod's own %s", network, a.Client, want)
			}
		}
		// Who is outside begins nothing, though the node forwards to the pod.
		before := c.drops(t, "node-1", "not-exposed")
		if a := c.ask(t, lab.Outside(), "tcp", at(c.addr(t, "client", v6), 9000), "--timeout", "300ms"); a.Error != "timeout" {
			t.Errorf("a client outside reached a pod: %q %q", a.Pod, a.Error)
		}
		if after := c.drops(t, "node-1", "not-exposed"); after <= before {
			t.Errorf("not-exposed was not counted: %v, then %v", before, after)
		}
		// Other addresses outside see the node.
		out := c.addr(t, "outside", v6)
		c.reaches(t, lab.Pod("client"), "tcp", at(out, 9300), "server")
		if a := c.ask(t, lab.Pod("client"), "tcp", at(out, 9300)); hostOf(a.Client) != c.addr(t, "node-1", v6).String() {
			t.Errorf("at another address the server sees %s, want the node", a.Client)
		}
	}
	talking := c.talk(t, lab.Pod("client"), at(external[false], 9300), at(external[true], 9300))
	c.killed(t, "node-1")
	t.Logf("the longest silence was %s", talking.unharmed(t))
}
