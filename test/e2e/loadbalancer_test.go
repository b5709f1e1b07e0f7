package e2e

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/lab"
)

// The addresses of load balancers, in ranges for benchmarks and documentation (RFC 2544, RFC 3849).
var balancers = addresstest.Prefixes("198.18.7.0/24", "2001:db8:1b::/64")

// balancerYAML returns a Service of type LoadBalancer with one address of each family, whose last byte is n.
func balancerYAML(name, app string, n int, spec string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  ipFamilyPolicy: PreferDualStack
  selector: {app: %s}
  ports: [{name: line, port: 80, targetPort: 9000}, {name: datagram, port: 80, targetPort: 9000, protocol: UDP}, {name: transfer, port: 7000}]
%sstatus: {loadBalancer: {ingress: [{ip: 198.18.7.%d}, {ip: "2001:db8:1b::%d"}]}}
`, name, app, spec, n, n)
}

func balancer(n int, v6 bool, port uint16) string {
	if v6 {
		return at(netip.MustParseAddr(fmt.Sprintf("2001:db8:1b::%d", n)), port)
	}
	return at(netip.MustParseAddr(fmt.Sprintf("198.18.7.%d", n)), port)
}

// TestRoutedLoadBalancers has a router outside of the cluster that routes the addresses of load balancers to a node.
// The node's kernel forwards them to the host TAP, with a strict reverse path filter.
func TestRoutedLoadBalancers(t *testing.T) {
	yaml := nodesYAML + podYAML("client", "node-1") + podYAML("near", "node-1") + podYAML("far", "node-2") +
		balancerYAML("near", "near", 1, "") + balancerYAML("far", "far", 2, "") +
		balancerYAML("local", "far", 3, "  externalTrafficPolicy: Local\n") +
		balancerYAML("here", "near", 4, "  externalTrafficPolicy: Local\n") +
		balancerYAML("guarded", "near", 5, "  loadBalancerSourceRanges: [192.0.2.0/24, \"2001:db8:ffff::/64\"]\n") +
		balancerYAML("open", "near", 6, "  loadBalancerSourceRanges: [203.0.113.0/24, 172.31.0.0/16, \"2001:db8::/32\", \"fd00::/8\"]\n") +
		balancerYAML("nobody", "nobody", 7, "")
	c := upWith(t, testTime, lab.Options{Name: "balancers", LoadBalancers: balancers}, yaml)
	c.set(t, "node-1", "net/ipv4/conf/all/rp_filter", "1")
	for _, r := range balancers {
		c.run0(t, lab.Outside(), "ip", "route", "replace", r.String(), "via", c.addr(t, "node-1", r.Addr().Is6()).String())
	}
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6=%t", v6), func(t *testing.T) {
			client := ""
			for _, network := range []string{"tcp", "udp"} {
				for n, pod := range map[int]string{1: "near", 2: "far", 4: "near", 6: "near"} {
					a := c.reached(t, network, balancer(n, v6, 80), pod)
					// The pod sees the client itself, wherever the pod is.
					if client == "" {
						client = a
					}
					if a != client || !c.isOutside(t, a, v6) {
						t.Errorf("%s %d: the pod sees %s, want an address of the client outside", network, n, a)
					}
				}
			}
			for n, reason := range map[int]string{3: "local-policy", 5: "source-range"} {
				before := c.drops(t, "node-1", reason)
				if a := c.ask(t, lab.Outside(), "tcp", balancer(n, v6, 80), "--timeout", "300ms"); a.Error != "timeout" {
					t.Errorf("%s: %q %q, want silence", reason, a.Pod, a.Error)
				}
				if after := c.drops(t, "node-1", reason); after <= before {
					t.Errorf("%s was not counted: %v, then %v", reason, before, after)
				}
			}
			for _, to := range []string{balancer(7, v6, 80), balancer(1, v6, 81)} {
				if a := c.ask(t, lab.Outside(), "tcp", to); a.Error != "refused" {
					t.Errorf("%s: %q %q, want it refused", to, a.Pod, a.Error)
				}
			}
			// What is no load balancer's is not for clients outside, though the node forwards it.
			before := c.drops(t, "node-1", "not-exposed")
			for _, name := range []string{"near", "svc/near"} {
				c.run0(t, lab.Outside(), "ip", "route", "replace", netip.PrefixFrom(c.addr(t, name, v6), c.addr(t, name, v6).BitLen()).String(), "via", c.addr(t, "node-1", v6).String())
				if a := c.ask(t, lab.Outside(), "tcp", at(c.addr(t, name, v6), 9000), "--timeout", "300ms"); a.Error != "timeout" {
					t.Errorf("%s: %q %q, want silence", name, a.Pod, a.Error)
				}
			}
			if after := c.drops(t, "node-1", "not-exposed"); after < before+2 {
				t.Errorf("not-exposed was counted %v times, want 2 and more", after-before)
			}
			// Processes of the node use the address as well.
			c.reaches(t, lab.Node("node-1"), "tcp", balancer(2, v6, 80), "far")
			c.reaches(t, lab.Pod("client"), "tcp", balancer(2, v6, 80), "far")
		})
	}
	t.Run("agent killed", func(t *testing.T) {
		const size = 32 << 20
		var servers []*helper
		for _, pod := range []string{"near", "far"} {
			servers = append(servers, c.begin(t, lab.Pod(pod), "transfer-serve", ":7000"))
		}
		talking := c.talk(t, lab.Outside(), balancer(1, false, 80), balancer(2, false, 80), balancer(1, true, 80), balancer(2, true, 80))
		for i := range 5 {
			type result struct {
				out string
				err error
			}
			done := make(chan result, 1)
			to := balancer(1+i%2, i%4 > 1, 7000)
			go func() {
				out, text, code, err := c.Output(c.ctx, lab.Outside(), self(t), "e2e-helper", "transfer", to, strconv.Itoa(size))
				if code != 0 {
					err = fmt.Errorf("exit status %d, %v: %s", code, err, text)
				}
				done <- result{out, err}
			}()
			c.killed(t, "node-1")
			r := <-done
			if r.err != nil {
				t.Errorf("%s: %v", to, r.err)
			} else if got := decode[transferred](t, r.out); !got.There || !got.Back || got.Bytes != size {
				t.Errorf("%s: %+v", to, got)
			}
		}
		c.killed(t, "node-1", "node-2")
		t.Logf("the longest silence was %s", talking.unharmed(t))
		for _, s := range servers {
			s.end(t)
		}
	})
	t.Run("told", func(t *testing.T) {
		n, err := (&localapi.Client{Path: c.Dir + "/nodes/node-1/api.sock"}).Node(c.ctx)
		if err != nil || n.LoadBalancers.Tier != localapi.HostTAP || len(n.LoadBalancers.Ranges) != len(balancers) {
			t.Errorf("the node tells %+v, %v", n.LoadBalancers, err)
		}
		quiet := func(st *lab.Status) bool { return !problem(st, "node node-1", "clients outside do not reach") }
		c.until(t, "nothing is wrong", quiet)
		c.set(t, "node-1", "net/ipv4/conf/eth0/forwarding", "0")
		c.until(t, "that the node does not forward is told", func(st *lab.Status) bool {
			return problem(st, "node node-1", "of IPv4", "net.ipv4.conf.eth0.forwarding is 0", "set net.ipv4.ip_forward=1")
		})
		c.set(t, "node-1", "net/ipv4/conf/eth0/forwarding", "1")
		c.run0(t, lab.Node("node-1"), "ip", "-6", "route", "del", balancers[1].String(), "dev", "tapestry0")
		c.until(t, "that the route is gone is told", func(st *lab.Status) bool {
			return problem(st, "node node-1", "Service default/near", "2001:db8:1b::1", "host-tap' there again") && !problem(st, "node node-1", "of IPv4")
		})
		c.run0(t, lab.Node("node-1"), "ip", "-6", "route", "replace", balancers[1].String(), "via", "fe80::1", "dev", "tapestry0", "onlink")
		c.until(t, "nothing is wrong again", quiet)
	})
}

// reached asks a server from outside until it answers, and returns the client's address as the pod sees it.
func (c *cluster) reached(t *testing.T, network, addr, pod string) string {
	t.Helper()
	c.reaches(t, lab.Outside(), network, addr, pod)
	return hostOf(c.ask(t, lab.Outside(), network, addr).Client)
}

// isOutside reports whether an address is of the namespace outside.
func (c *cluster) isOutside(t *testing.T, addr string, v6 bool) bool {
	t.Helper()
	family := "-4"
	if v6 {
		family = "-6"
	}
	return strings.Contains(c.run0(t, lab.Outside(), "ip", family, "-o", "addr"), " "+addr+"/")
}

// drops returns how many packets a node has dropped for a reason.
func (c *cluster) drops(t *testing.T, node, reason string) float64 {
	t.Helper()
	list, err := (&localapi.Client{Path: c.Dir + "/nodes/" + node + "/api.sock"}).Counters(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return list.Of("tapestry_drops_total")[reason]
}

// set changes a kernel setting of a node, as its operator does.
func (c *cluster) set(t *testing.T, node, key, value string) {
	t.Helper()
	c.run0(t, lab.Node(node), "sh", "-c", "echo "+value+" > /proc/sys/"+key)
}

// run0 runs a program of the machine, and returns its output.
func (c *cluster) run0(t *testing.T, where lab.Target, argv ...string) string {
	t.Helper()
	out, text, code, err := c.Output(c.ctx, where, argv...)
	if err != nil || code != 0 {
		t.Fatalf("%q: %d, %v: %s", argv, code, err, text)
	}
	return out
}
