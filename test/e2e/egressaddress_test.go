package e2e

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/announce/link"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/rpc"
	"tapestry.dev/tapestry/test/probe"
)

// announceLinks is tapestry-l2 as a helper. Args: the name of its node, and the socket of its agent.
func announceLinks(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	started()
	return link.Run(ctx, link.Options{Node: args[0], Agent: args[1], Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}

// left is what the helper leave prints.
type left struct {
	// Seen has the addresses from which servers saw new connections and datagrams, and how many came from each. The key
	// "" stands for those without an answer.
	Seen map[string]int
	// WorstMillis is the longest time without an answer, of the servers that had one before.
	WorstMillis float64
}

// leave asks servers outside again and again from where they see it, each time over a new connection or from a new
// port. Args are the servers.
func leave(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	out := left{Seen: map[string]int{}}
	last := map[string]time.Time{}
	started()
	for i := 0; ctx.Err() == nil; i++ {
		network, to := []string{"tcp", "udp"}[i%2], args[i/2%len(args)]
		a := probe.Ask(ctx, probe.Request{Network: network, Addr: to, Timeout: 200 * time.Millisecond})
		if ctx.Err() != nil {
			break
		}
		out.Seen[hostOf(a.Client)]++
		if now, was := time.Now(), last[to]; a.Error == "" {
			if !was.IsZero() {
				out.WorstMillis = max(out.WorstMillis, float64(now.Sub(was).Microseconds())/1000)
			}
			last[to] = now
		}
	}
	return print(out)
}

const egressYAML = `---
apiVersion: v1
kind: Node
metadata: {name: node-3}
---
apiVersion: tapestry.dev/v1alpha1
kind: EgressAddress
metadata: {name: shop}
spec:
  addresses: [198.18.7.50, "2001:db8:1b::50"]
  namespaces: [default]
  podSelector: {matchExpressions: [{key: app, operator: In, values: [client, far]}]}
  nodeSelector: {matchExpressions: [{key: kubernetes.io/hostname, operator: NotIn, values: [node-1]}]}
`

// egressLab is a lab with egress addresses, which nodes 2 and 3 can announce.
type egressLab struct {
	*cluster
	announcers     map[string]*helper
	servers, wants []string // outside, and from where they see pods
}

// TestEgressAddresses has pods that leave from an address of their own. Its gateway loses its announcer, its agent, and
// then its network. The next one takes over, connections go on, and whatever happens nothing of the pods comes from
// another address.
func TestEgressAddresses(t *testing.T) {
	yaml := strings.Replace(nodesYAML, "{name: node-1}", "{name: node-1, labels: {kubernetes.io/hostname: node-1}}", 1) +
		egressYAML + podYAML("client", "node-1") + podYAML("far", "node-2") + podYAML("other", "node-1")
	c := &egressLab{
		cluster:    upWith(t, testTime, lab.Options{Name: "egress-address", LoadBalancers: balancers, Announced: []string{"l2"}}, yaml),
		announcers: map[string]*helper{}, servers: []string{at(external[false], 9300), at(external[true], 9300)}, wants: []string{"198.18.7.50", "2001:db8:1b::50"},
	}
	for _, r := range balancers {
		c.run0(t, lab.Outside(), "ip", "route", "replace", r.String(), "dev", "eth0")
	}
	c.begin(t, lab.Outside(), "serve-outside", "server", "9300")
	c.begin(t, lab.Outside(), "tick", ":9301")
	c.refused(t)
	// A node that can be the gateway, and does not forward, says so, whether it is the gateway or not.
	told := func(st *lab.Status) bool {
		return problem(st, "node node-2", "from egress addresses of IPv4 by this node", "set net.ipv4.ip_forward=1")
	}
	c.set(t, "node-2", "net/ipv4/ip_forward", "0")
	c.until(t, "that the node does not forward is told", told)
	c.set(t, "node-2", "net/ipv4/ip_forward", "1")
	c.until(t, "nothing is wrong with it", func(st *lab.Status) bool { return !told(st) })
	c.announce(t, "node-2")
	c.announce(t, "node-3")
	c.leave(t)
	if a := c.ask(t, lab.Pod("other"), "tcp", c.servers[0]); hostOf(a.Client) != c.addr(t, "node-1", false).String() {
		t.Errorf("of a pod that is not selected the server sees %s, want the node: %s", a.Client, a.Error)
	}
	if a := c.ask(t, lab.Pod("client"), "tcp", at(c.addr(t, "far", false), 9000)); hostOf(a.Client) != c.addr(t, "client", false).String() {
		t.Errorf("inside of the cluster the pod is %s, want itself: %s", a.Client, a.Error)
	}
	// The next gateway cannot give two connections that it does not know one port, so the pods have no port in common.
	for pod, ports := range map[string]string{"client": "20000 29999", "far": "30000 39999"} {
		c.run0(t, lab.Pod(pod), "sh", "-c", "echo "+ports+" > /proc/sys/net/ipv4/ip_local_port_range")
	}
	client, far := c.use(t, "client"), c.use(t, "far")
	first := c.gateways(t)[c.wants[0]]
	next := map[string]string{"node-2": "node-3", "node-3": "node-2"}[first]

	c.killed(t, "node-1", first)
	c.announcers[first].end(t)
	c.awaitGateway(t, next)
	c.announce(t, first)
	c.awaitGateway(t, first)
	if err := c.KillAgent(c.ctx, first, syscall.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	c.awaitGateway(t, next)
	if err := c.StartAgent(c.ctx, first); err != nil {
		t.Fatal(err)
	}
	c.awaitGateway(t, first)
	c.leave(t)
	c.unharmed(t, far)
	c.run0(t, lab.Node(first), "ip", "link", "set", "eth0", "down")
	c.awaitGateway(t, next)
	c.reaches(t, lab.Pod("client"), "tcp", c.servers[0], "server")
	c.unharmed(t, client)

	// Without any gateway nothing leaves, a moment after the node knows that there is none.
	c.announcers[next].end(t)
	c.awaitGateway(t, "")
	before := c.drops(t, "node-1", "no-exit")
	await.Until(t, "what leaves to be refused", func() bool { return c.seen(t) == "" && c.drops(t, "node-1", "no-exit") > before })
	c.refused(t)
}

// announce starts the announcer of a node.
func (c *egressLab) announce(t *testing.T, node string) {
	t.Helper()
	c.announcers[node] = c.announcer(t, node)
}

// gateways returns the gateway of each address, as the node of the client knows it.
func (c *egressLab) gateways(t *testing.T) map[string]string {
	t.Helper()
	turns, err := localapi.Turns.Ask(c.ctx, &localapi.Client{Path: rpc.NodeDir(c.Dir, "node-1") + "/api.sock"})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, turn := range turns {
		if !turn.Expected {
			out[turn.Addr.String()] = turn.Announcer
		}
	}
	return out
}

// awaitGateway waits until the first address has that gateway.
func (c *egressLab) awaitGateway(t *testing.T, node string) {
	t.Helper()
	await.Until(t, "the gateway to be "+node, func() bool { got, known := c.gateways(t)[c.wants[0]]; return known && got == node })
}

// leave waits until servers outside see both pods at their addresses.
func (c *egressLab) leave(t *testing.T) {
	t.Helper()
	for _, pod := range []string{"client", "far"} {
		for i, s := range c.servers {
			for _, network := range []string{"tcp", "udp"} {
				var a probe.Answer
				await.Until(t, pod+" to be answered", func() bool {
					a = c.ask(t, lab.Pod(pod), network, s, "--timeout", "2s")
					return a.Error == ""
				})
				if hostOf(a.Client) != c.wants[i] {
					t.Errorf("%s %s: the server sees %s, want %s", pod, network, a.Client, c.wants[i])
				}
			}
		}
	}
}

// refused makes sure that nothing of the client leaves.
func (c *egressLab) refused(t *testing.T) {
	t.Helper()
	if at := c.seen(t); at != "" {
		t.Errorf("without a gateway the server sees %s", at)
	}
}

// seen returns from where a server sees the client, "" when none does.
func (c *egressLab) seen(t *testing.T) (at string) {
	t.Helper()
	for _, s := range c.servers {
		if a := c.ask(t, lab.Pod("client"), "tcp", s, "--timeout", "300ms"); a.Error == "" {
			at = a.Client
		}
	}
	return at
}

// user is a pod that leaves from the addresses in every way.
type user struct {
	pod                string
	talking            conversations
	leaving, listening *helper
}

// use has a pod talk to servers outside, ask them anew again and again, and listen to what they say.
func (c *egressLab) use(t *testing.T, pod string) user {
	t.Helper()
	return user{
		pod, c.talk(t, lab.Pod(pod), c.servers...), c.begin(t, lab.Pod(pod), append([]string{"leave"}, c.servers...)...),
		c.begin(t, lab.Pod(pod), "listen", at(external[false], 9301), at(external[true], 9301)),
	}
}

// unharmed ends what a pod does. No connection may have broken, and no server have seen another address.
func (c *egressLab) unharmed(t *testing.T, u user) {
	t.Helper()
	out := decode[left](t, u.leaving.end(t))
	for from, n := range out.Seen {
		if from != "" && !slices.Contains(c.wants, from) {
			t.Errorf("%s: servers saw %s %d times, want %v alone", u.pod, from, n, c.wants)
		}
	}
	worst := u.talking.unharmed(t)
	t.Logf("%s: the longest silence of a connection was %d ms, that of new ones %.0f ms; servers saw %v",
		u.pod, worst.Milliseconds(), out.WorstMillis, out.Seen)
	heardOn(t, u.pod, u.listening)
}
