package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/impair"
)

// soakTime returns how long TestSoak makes traffic: TAPESTRY_SOAK, such as 24h, by default 100 s, with -short 20 s. A
// longer time needs a longer -timeout, too.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	if text := os.Getenv("TAPESTRY_SOAK"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("TAPESTRY_SOAK: %v", err)
		}
		return d
	}
	if testing.Short() {
		return 20 * time.Second
	}
	return 100 * time.Second
}

// weather lists the conditions of the underlay, which take turns.
var weather = []struct {
	name string
	impair.Config
}{
	{"good", impair.Config{}},
	{"lossy", impair.Config{Loss: 0.01, Duplicate: 0.01, Reorder: 0.02, Delay: 2 * time.Millisecond, Jitter: time.Millisecond}},
	{"narrow, with ICMP", impair.Config{MTU: 1400, ICMP: true, Loss: 0.002}},
	{"far away", impair.Config{Delay: 15 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.003}},
	{"narrow, in silence", impair.Config{MTU: 1360, Reorder: 0.02, Delay: time.Millisecond}},
}

// seasonTime is how long a condition of the underlay lasts.
const seasonTime = 8 * time.Second

// held is what an agent holds, seen from inside and from outside.
type held struct {
	used
	counters   counter.List
	flows      map[string]float64 // by state
	goroutines float64
}

func (c *cluster) held(t *testing.T, node string) held {
	t.Helper()
	pid := nodeOf(c.status(t), node).PID
	h := held{used: decode[used](t, c.run(t, lab.Node(node), "usage", strconv.Itoa(pid))), counters: c.counters(t, node)}
	h.flows, h.goroutines = h.counters.Of("tapestry_flows"), h.counters.Get("go_goroutines")
	return h
}

func (h held) String() string {
	return fmt.Sprintf("%.0f goroutines, %d descriptors, %d threads, %d MiB resident, flows %v", h.goroutines, h.Descriptors, h.Threads, h.RSSKiB>>10, h.flows)
}

// TestSoak makes every kind of traffic over a bad underlay for a while and kills an agent in the middle. Then it checks
// the results of the traffic, and what the agents still hold.
func TestSoak(t *testing.T) {
	length := soakTime(t)
	c := upFor(t, length+2*testTime, "soak", baseYAML+podYAML("other", "node-2")+transferService("near", 30091)+transferService("far", 30092),
		"--udp-idle", "3s")
	nodes := []string{"node-1", "node-2"}
	listen := ":" + strconv.Itoa(transferPort)
	for _, where := range []lab.Target{lab.Pod("near"), lab.Pod("far"), lab.Outside()} {
		c.begin(t, where, "transfer-serve", listen)
	}
	before := map[string]held{}
	for _, n := range nodes {
		before[n] = c.held(t, n)
		t.Logf("%s before: %s", n, before[n])
	}

	traffic := c.traffic(t)
	end := time.Now().Add(length)
	var middle map[string]held
	for season := 0; time.Now().Before(end); season++ {
		w := weather[season%len(weather)]
		w.Seed = uint64(season + 1)
		if err := c.Impair(c.ctx, "node-1", "node-2", w.Config); err != nil {
			t.Fatal(err)
		}
		select {
		case <-time.After(min(seasonTime, time.Until(end))):
		case <-c.ctx.Done():
			t.Fatal(c.ctx.Err())
		}
		if season == 1 { // the next agent must carry on what is translated
			c.killed(t, "node-2")
		}
		if middle == nil && time.Until(end) < length/2 {
			middle = map[string]held{}
			for _, n := range nodes {
				middle[n] = c.held(t, n)
				t.Logf("%s in the middle: %s", n, middle[n])
			}
		}
	}
	if err := c.Unimpair(c.ctx, "node-1", "node-2"); err != nil {
		t.Fatal(err)
	}
	opened := 0
	for name, h := range traffic {
		got := decode[mixed](t, h.end(t))
		got.check(t, name)
		opened += int(got.Connections + got.Failures + got.Asked + 4*got.Resolved + int64(len(got.Held)))
	}
	for _, n := range nodes {
		c.leaksNothing(t, n, before[n], middle[n], opened)
	}
}

// traffic begins all the mixes: from a pod on each node, and from outside.
func (c *cluster) traffic(t *testing.T) map[string]*helper {
	t.Helper()
	var here, there, outside []string
	for _, v6 := range []bool{false, true} {
		near, far := c.addr(t, "near", v6), c.addr(t, "far", v6)
		services := []string{
			"transfer=" + at(c.addr(t, "svc/near-transfer", v6), servicePort), "transfer=" + at(c.addr(t, "svc/far-transfer", v6), servicePort),
			"hold=" + at(c.addr(t, "svc/near", v6), 81), "hold=" + at(c.addr(t, "svc/far", v6), 81),
			"ask=" + at(c.addr(t, "svc/near", v6), 81), "ask=" + at(c.addr(t, "svc/far", v6), 81),
		}
		here = append(here, services...)
		here = append(here, "transfer="+at(near, transferPort), "transfer="+at(far, transferPort), "hold="+at(far, 9000), "ask="+at(far, 9000),
			"transfer="+at(c.addr(t, "outside", v6), transferPort))
		there = append(there, services...)
		there = append(there, "transfer="+at(near, transferPort), "ask="+at(near, 9000))
		// This is the node whose agent is not killed, since flows that end in netstack would be cut.
		node := c.addr(t, "node-1", v6)
		outside = append(outside, "transfer="+at(node, 30091), "transfer="+at(node, 30092), "hold="+at(node, 30082), "ask="+at(node, 30081), "ask="+at(node, 30082))
	}
	here = append(here, "resolve=near.default.svc.cluster.local", "resolve=far")
	return map[string]*helper{
		"node-1":  c.begin(t, lab.Pod("client"), append([]string{"mix"}, here...)...),
		"node-2":  c.begin(t, lab.Pod("other"), append([]string{"mix"}, there...)...),
		"outside": c.begin(t, lab.Outside(), append([]string{"mix"}, outside...)...),
	}
}

// check asserts that nothing but datagrams was lost.
func (m *mixed) check(t *testing.T, name string) {
	t.Helper()
	t.Logf("%s: %d connections, %d MB, the longest transfer took %d ms (%s); %d of %d datagrams answered; %d names resolved", name,
		m.Connections, m.Bytes>>20, m.LongestTransferMS, m.LongestTransferAddr, m.Answered, m.Asked, m.Resolved)
	if m.Failures > 0 {
		t.Errorf("%s: %d things failed, among them %q", name, m.Failures, m.FirstFailures)
	}
	if m.Connections < 10 || 10*m.Answered < 8*m.Asked {
		t.Errorf("%s: only %d connections, and %d of %d datagrams were answered", name, m.Connections, m.Answered, m.Asked)
	}
	for addr, h := range m.Held {
		if h.Error != "" || h.Rounds < 10 {
			t.Errorf("%s: the connection to %s broke after %d rounds: %s", name, addr, h.Rounds, h.Error)
		}
	}
}

// established returns the TCP connections that the kernels of a node's pods have.
func (c *cluster) established(t *testing.T, node string) (conns []string) {
	t.Helper()
	const state, isEstablished = 3, "01" // of proc_pid_net(5)
	for _, p := range c.status(t).Pods {
		if p.Node != node {
			continue
		}
		out, stderr, code, err := c.Output(c.ctx, lab.Pod(p.Name), "cat", "/proc/net/tcp", "/proc/net/tcp6")
		if err != nil || code != 0 {
			t.Fatalf("%s: exit status %d, %v: %s", p.Name, code, err, stderr)
		}
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > state && f[state] == isEstablished {
				conns = append(conns, p.Name+" "+f[1]+" "+f[2])
			}
		}
	}
	return conns
}

// leaksNothing waits until an agent holds what it held before the traffic. Flows may remain, but none of them may be
// open.
func (c *cluster) leaksNothing(t *testing.T, node string, before, middle held, opened int) {
	t.Helper()
	// A SYN that the bad underlay delivers after the end of its connection begins a flow, which lives for a minute.
	const grace, unanswered = 30 * time.Second, 90 * time.Second
	var now held
	for begun := time.Now(); ; {
		now = c.held(t, node)
		settled := now.goroutines <= before.goroutines+5 && now.Descriptors <= before.Descriptors+2 && open(now.flows) <= open(before.flows)
		limit := grace
		if now.flows["SYN_SENT"] > before.flows["SYN_SENT"] {
			limit = unanswered
		}
		if settled || time.Since(begun) > limit {
			break
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-c.ctx.Done():
			t.Fatal(c.ctx.Err())
		}
	}
	t.Logf("%s after: %s; verdicts %v, drops %v, link %v", node, now,
		now.counters.Of("tapestry_packets_total"), now.counters.Of("tapestry_drops_total"), now.counters.Of("tapestry_link_total"))
	if now.goroutines > before.goroutines+5 {
		t.Errorf("%s: %.0f goroutines, before %.0f", node, now.goroutines, before.goroutines)
	}
	if now.Descriptors > before.Descriptors+2 {
		t.Errorf("%s: %d descriptors, before %d", node, now.Descriptors, before.Descriptors)
	}
	if full := now.counters.Get("tapestry_flows_full_total"); full > 0 {
		t.Errorf("%s: %.0f flows found no room", node, full)
	}
	if left := open(now.flows) - open(before.flows); left > 0 {
		// The bad underlay also loses resets. A connection whose reset was lost stays until its owner sends something
		// (RFC 9293 3.5.1), and so does its flow.
		half := c.established(t, node)
		t.Logf("%s: open in its pods' kernels: %q", node, half)
		if left > len(half) {
			t.Errorf("%s: %d flows are left, %v, and its pods have only %d connections", node, left, now.flows, len(half))
		}
	}
	all := 0
	for _, n := range now.flows {
		all += int(n)
	}
	if all > opened+1000 { // probes of the lab, retries
		t.Errorf("%s: %d flows, and only %d were opened", node, all, opened)
	}
	if limit := middle.Threads + 10; now.Threads > limit {
		t.Errorf("%s: %d threads, in the middle %d", node, now.Threads, middle.Threads)
	}
	// Pools grow to what the traffic needs, and no further.
	if limit := middle.RSSKiB*3/2 + 64<<10; now.RSSKiB > limit {
		t.Errorf("%s: %d KiB resident, in the middle %d", node, now.RSSKiB, middle.RSSKiB)
	}
}
