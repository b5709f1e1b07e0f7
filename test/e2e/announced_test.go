package e2e

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/impair"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// announcedYAML has two nodes that announce, a third with a server, and Services at addresses of a pool. One of them
// is local, to a pod of node-2.
var announcedYAML = nodesYAML + `---
apiVersion: v1
kind: Node
metadata: {name: node-3, labels: {inner: "true"}}
` + podYAML("far", "node-3") + podYAML("near", "node-2") + `---
apiVersion: tapestry.dev/v1alpha1
kind: AddressPool
metadata: {name: public}
spec: {addresses: [198.18.7.0/28, "2001:db8:1b::/124"]}
---
apiVersion: tapestry.dev/v1alpha1
kind: L2Advertisement
metadata: {name: lan}
spec: {pools: [public], nodeSelector: {matchExpressions: [{key: inner, operator: DoesNotExist}]}}
` + announcedService("web", "far", 1, "Cluster") + announcedService("local", "near", 2, "Local") + announcedService("taken", "far", 3, "Cluster")

// announcedService returns a Service that asks the pool for one address of each family, whose last byte is n.
func announcedService(name, app string, n int, policy string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s, annotations: {tapestry.dev/load-balancer-ips: "198.18.7.%d, 2001:db8:1b::%d"}}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  ipFamilyPolicy: PreferDualStack
  externalTrafficPolicy: %s
  selector: {app: %s}
  ports: [{name: line, port: 80, targetPort: 9000}, {name: datagram, port: 80, targetPort: 9000, protocol: UDP}, {name: association, port: 80, targetPort: 9000, protocol: SCTP}]
`, name, n, n, policy, app)
}

// announcer starts tapestry-l2 on a node.
func (c *cluster) announcer(t *testing.T, node string) *helper {
	t.Helper()
	return c.begin(t, lab.Node(node), "announce", node, rpc.AnnounceSocket(c.Dir, node))
}

// turn returns whose turn it is to announce an address, as a node sees it. It returns false when its agent does not
// answer, or does not know the address.
func (c *cluster) turn(node, addr string) (announce.Turn, bool) {
	turns, err := localapi.Turns.Ask(c.ctx, &localapi.Client{Path: rpc.NodeDir(c.Dir, node) + "/api.sock"})
	if err != nil {
		return announce.Turn{}, false
	}
	for _, turn := range turns {
		if turn.Addr.String() == addr {
			return turn, true
		}
	}
	return announce.Turn{}, false
}

// announcing returns the nodes that take an address for theirs to announce, of those that may.
func (c *cluster) announcing(addr string) (nodes []string) {
	for _, node := range []string{"node-1", "node-2"} {
		if turn, known := c.turn(node, addr); known && turn.Mine {
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// announcedBy waits until one node alone announces an address.
func (c *cluster) announcedBy(t *testing.T, addr, node string) {
	t.Helper()
	await.Until(t, addr+" to be announced by "+node+" alone", func() bool {
		list := c.announcing(addr)
		return len(list) == 1 && list[0] == node
	})
}

// TestLoadBalancerAnnounced has addresses of a pool that nodes announce by ARP and NDP. A client on their link, which
// has no route but the link, reaches a pod on a third node by TCP, UDP and SCTP. The announcing node loses its agent,
// then its announcer, then sight of the other node, and each time one node announces in the end, and new connections
// get through. Each node says in which tier it is. An address that the machine outside has itself is left to it, and
// told.
func TestLoadBalancerAnnounced(t *testing.T) {
	c := upWith(t, 2*testTime, lab.Options{Name: "announced", LoadBalancers: balancers, Announced: []string{"l2"}}, announcedYAML)
	for _, r := range balancers {
		c.run0(t, lab.Outside(), "ip", "route", "replace", r.String(), "dev", "eth0")
	}
	c.run0(t, lab.Outside(), "ip", "addr", "add", "198.18.7.3/32", "dev", "eth0")
	announcers := map[string]*helper{"node-1": c.announcer(t, "node-1"), "node-2": c.announcer(t, "node-2")}
	other := map[string]string{"node-1": "node-2", "node-2": "node-1"}
	c.until(t, "that somebody else answers for an address is told", func(st *lab.Status) bool {
		return problem(st, "Service default/taken", "198.18.7.3 is answered for by", "which is no node of this cluster")
	})
	c.begin(t, lab.Pod("far"), "associations", "9000")
	for _, v6 := range []bool{false, true} {
		web, local := balancer(1, v6, 80), balancer(2, v6, 80)
		for _, network := range []string{"tcp", "udp"} {
			if a := c.reached(t, network, web, "far"); !c.isOutside(t, a, v6) {
				t.Errorf("%s %s: the pod sees %s, want an address of the client outside", network, web, a)
			}
			c.reached(t, network, local, "near")
		}
		c.associates(t, web, v6)
		c.announcedBy(t, hostOf(local), "node-2") // no other node has a pod

		for node, want := range map[string]localapi.Tier{"node-1": localapi.Announced, "node-2": localapi.Announced, "node-3": localapi.HostTAP} {
			await.Until(t, node+" to tell that it is in the tier "+string(want), func() bool {
				n, err := (&localapi.Client{Path: rpc.NodeDir(c.Dir, node) + "/api.sock"}).Node(c.ctx)
				return err == nil && n.LoadBalancers.Tier == want && len(n.LoadBalancers.Ranges) == len(balancers)
			})
		}

		addr := hostOf(web)
		first := c.only(t, addr)
		c.failsOver(t, "the agent of "+first, web, other[first], func() {
			if err := c.KillAgent(c.ctx, first, syscall.SIGKILL, true); err != nil {
				t.Fatal(err)
			}
		})
		if err := c.StartAgent(c.ctx, first); err != nil {
			t.Fatal(err)
		}
		c.announcedBy(t, addr, first)
		if v6 {
			continue // an announcer ends for both families
		}
		c.failsOver(t, "the announcer of "+first, web, other[first], func() { announcers[first].end(t) })
		announcers[first] = c.announcer(t, first)
		c.announcedBy(t, addr, first)
	}

	// Nodes that cannot hear each other both announce, and clients reach both.
	addr := hostOf(balancer(1, false, 80))
	first := c.only(t, addr)
	if err := c.Impair(c.ctx, "node-1", "node-2", impair.Config{Loss: 1}); err != nil {
		t.Fatal(err)
	}
	await.Until(t, "both nodes to announce", func() bool { return len(c.announcing(addr)) == 2 })
	c.reaches(t, lab.Outside(), "tcp", balancer(1, false, 80), "far")
	if err := c.Unimpair(c.ctx, "node-1", "node-2"); err != nil {
		t.Fatal(err)
	}
	healed := time.Now()
	c.announcedBy(t, addr, first)
	t.Logf("one node announces %s after the nodes hear each other again", time.Since(healed).Round(time.Millisecond))
	c.reaches(t, lab.Outside(), "tcp", balancer(1, false, 80), "far")
}

// only waits until one node announces an address, and returns it.
func (c *cluster) only(t *testing.T, addr string) (node string) {
	t.Helper()
	await.Until(t, "one node to announce "+addr, func() bool {
		list := c.announcing(addr)
		if len(list) == 1 {
			node = list[0]
		}
		return len(list) == 1
	})
	return node
}

// failsOver has something end at the node that announces an address, while a client outside asks there again and again,
// and waits until the next node announces it and the client is answered. How long the client was not answered is
// logged: it is a second where the machine is not busy.
func (c *cluster) failsOver(t *testing.T, what, to, next string, end func()) {
	t.Helper()
	asking := c.begin(t, lab.Outside(), "leave", to)
	often := func() { // meanwhile whoever asks again and again was answered, too
		for range 10 {
			c.answered(t, lab.Outside(), "tcp", to, "far")
		}
	}
	often()
	end()
	await.Until(t, hostOf(to)+" to be announced by "+next, func() bool { turn, _ := c.turn(next, hostOf(to)); return turn.Mine })
	c.reaches(t, lab.Outside(), "tcp", to, "far")
	often()
	out := decode[left](t, asking.end(t))
	if out.WorstMillis > 5000 {
		t.Errorf("%s ends: new connections to %s got no answer for %.0f ms", what, to, out.WorstMillis)
	}
	t.Logf("%s ends: new connections to %s got no answer for %.0f ms; seen: %v", what, to, out.WorstMillis, out.Seen)
}
