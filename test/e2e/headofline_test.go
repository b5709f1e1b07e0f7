package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/test/lab"
)

const (
	loadPort   = 5201
	victimPort = 9999
	// window is how long each thing is measured at a time. The compared things take turns, since the machine also does
	// other work.
	window = 600 * time.Millisecond
	rounds = 3
	// The shares that must remain of a bystander's throughput and transactions, compared with the same load without the
	// fault. Both are far below 1 because of what else the machine does, transactions more so: a full tunnel adds the
	// time of inflightMax packets to each. Behind a blocked queue nothing would remain.
	sparedBytes, sparedTransactions = 0.1, 0.05
)

// bystander measures what an uninvolved pod gets under each condition.
type bystander struct {
	c        *cluster
	from     lab.Target
	to       string
	bytes    map[string]uint64
	requests map[string]uint64
}

func (c *cluster) bystander(t *testing.T, from, to string) *bystander {
	t.Helper()
	c.begin(t, lab.Pod(to), "load-serve", ":"+strconv.Itoa(loadPort))
	return &bystander{c: c, from: lab.Pod(from), to: at(c.addr(t, to, false), loadPort), bytes: map[string]uint64{}, requests: map[string]uint64{}}
}

func (b *bystander) look(t *testing.T, condition string) {
	t.Helper()
	b.bytes[condition] += b.c.measure(t, b.from, "stream", b.to, load.Options{Time: window}).Bytes
	b.requests[condition] += b.c.measure(t, b.from, "rr", b.to, load.Options{Time: window}).Transactions
}

// spared compares a condition with one that differs from it only by the fault.
func (b *bystander) spared(t *testing.T, fault, without string) {
	t.Helper()
	bytes := float64(b.bytes[fault]) / float64(b.bytes[without])
	requests := float64(b.requests[fault]) / float64(b.requests[without])
	t.Logf("%s, beside %s: %.2f of the bytes, %.2f of the transactions", fault, without, bytes, requests)
	if bytes < sparedBytes || requests < sparedTransactions {
		t.Errorf("%s slows others: %.2f of the bytes and %.2f of the transactions are left of what they get with %s, want %.2f and %.2f",
			fault, bytes, requests, without, sparedBytes, sparedTransactions)
	}
}

// attack runs a helper while f runs, and checks that the helper was not idle.
func (c *cluster) attack(t *testing.T, f func(), from lab.Target, args ...string) {
	t.Helper()
	h := c.begin(t, from, args...)
	f()
	if did := h.end(t); strings.Contains(did, ":0}") {
		t.Errorf("%v did nothing: %s", args, did)
	}
}

// TestDeadPeer floods a pod on a live node, a pod on a node whose agent is stopped, and a pod on a node that is cut
// off. Meanwhile a pod beside the flooding pod talks to a third node. The flood takes processor time whether its far
// end is alive or not, so the three cases are compared with each other.
func TestDeadPeer(t *testing.T) {
	c := up(t, "dead-peer", nodesYAML+"---\napiVersion: v1\nkind: Node\nmetadata: {name: node-3}\n"+podYAML("client", "node-1")+
		podYAML("flooder", "node-1")+podYAML("far", "node-2")+podYAML("third", "node-3"))
	b := c.bystander(t, "client", "far")
	third := at(c.addr(t, "third", false), victimPort)
	c.answered(t, lab.Pod("flooder"), "tcp", at(c.addr(t, "third", false), 9000), "third") // a session exists now
	c.begin(t, lab.Pod("third"), "sink", fmt.Sprintf(":%d", victimPort), "unchecked")
	flooded := func(condition string) {
		t.Helper()
		c.attack(t, func() { b.look(t, condition) }, lab.Pod("flooder"), "flood", third, "0", "0")
	}
	for range rounds {
		flooded("a live peer")
		c.signal(t, "node-3", syscall.SIGSTOP)
		flooded("a stopped peer")
		c.signal(t, "node-3", syscall.SIGCONT)
	}
	c.run(t, lab.Node("node-3"), "unplug", "eth0")
	for range rounds {
		flooded("a peer that is cut off")
	}
	b.spared(t, "a stopped peer", "a live peer")
	b.spared(t, "a peer that is cut off", "a live peer")
}

func (c *cluster) signal(t *testing.T, node string, s syscall.Signal) {
	t.Helper()
	if err := c.KillAgent(c.ctx, node, s, false); err != nil {
		t.Fatal(err)
	}
}

// TestDeafPods: some pods do not read. One has closed windows, one is stopped, and one is flooded. Two other pods talk
// to each other meanwhile.
func TestDeafPods(t *testing.T) {
	c := up(t, "deaf-pods", nodesYAML+podYAML("client", "node-1")+podYAML("near", "node-1")+podYAML("attacker", "node-1")+
		podYAML("reader", "node-1")+podYAML("deaf", "node-1")+podYAML("stopped", "node-1")+podYAML("far", "node-2"))
	b := c.bystander(t, "client", "near")
	listen := fmt.Sprintf(":%d", victimPort)
	c.begin(t, lab.Pod("reader"), "sink", listen, "unchecked")
	c.begin(t, lab.Pod("deaf"), "deaf", listen)
	victim := func(pod string, port uint16) string { return at(c.addr(t, pod, false), port) }
	// Its server is stopped with connections in the backlog that nobody accepts.
	stopped := podOf(c.status(t), "stopped")
	for _, pid := range stopped.PIDs {
		if _, stderr, code, err := c.Output(c.ctx, lab.Outside(), "kill", "-STOP", strconv.Itoa(pid)); err != nil || code != 0 {
			t.Fatal(code, err, stderr)
		}
	}
	attacker := lab.Pod("attacker")
	for range rounds {
		b.look(t, "nothing else")
		c.attack(t, func() {
			c.attack(t, func() { b.look(t, "closed windows") }, lab.Pod("far"), "push", victim("deaf", victimPort), "8")
		}, attacker, "push", victim("deaf", victimPort), "8")
		c.attack(t, func() { b.look(t, "a stopped process") }, attacker, "push", victim("stopped", 9000), "8")
		c.attack(t, func() { b.look(t, "a flood that is read") }, attacker, "flood", victim("reader", victimPort), "0", "0")
		c.attack(t, func() { b.look(t, "a flood that nobody reads") }, attacker, "flood", victim("deaf", victimPort), "0", "0")
		c.attack(t, func() { b.look(t, "a flood at a stopped process") }, attacker, "flood", victim("stopped", 9000), "0", "0")
	}
	b.spared(t, "closed windows", "nothing else")
	b.spared(t, "a stopped process", "nothing else")
	b.spared(t, "a flood that nobody reads", "a flood that is read")
	b.spared(t, "a flood at a stopped process", "a flood that is read")
}

// TestFairness: pods of one node send at the same time, and the test compares what each of them gets.
func TestFairness(t *testing.T) {
	c := up(t, "fairness", nodesYAML+podYAML("a", "node-1")+podYAML("b", "node-1")+podYAML("near", "node-1")+podYAML("near-2", "node-1")+
		podYAML("far", "node-2")+podYAML("far-2", "node-2"))
	for _, pod := range []string{"near", "near-2", "far", "far-2"} {
		c.begin(t, lab.Pod(pod), "load-serve", ":"+strconv.Itoa(loadPort))
	}
	const least = 0.33 // of what the other pod gets
	for _, test := range []struct {
		name string
		to   [2]string // of a and b
	}{
		{"two senders, one receiver", [2]string{"near", "near"}},
		{"two pairs", [2]string{"near", "near-2"}},
		{"two senders, one receiver, across nodes", [2]string{"far", "far"}},
		{"two pairs, across nodes", [2]string{"far", "far-2"}},
	} {
		var got [2]uint64
		for range rounds {
			type result struct {
				i int
				r load.Result
				error
			}
			results := make(chan result, len(got))
			for i, from := range []string{"a", "b"} {
				addr := at(c.addr(t, test.to[i], false), loadPort)
				go func() {
					r, err := c.tryMeasure(t, lab.Pod(from), "stream", addr, load.Options{Time: 2 * window})
					results <- result{i, r, err}
				}()
			}
			for range got {
				r := <-results
				if r.error != nil {
					t.Fatal(r.error)
				}
				got[r.i] += r.r.Bytes
			}
		}
		ratio := float64(min(got[0], got[1])) / float64(max(got[0], got[1]))
		t.Logf("%s: %d and %d MB, %.2f", test.name, got[0]>>20, got[1]>>20, ratio)
		if ratio < least {
			t.Errorf("%s: %d and %d bytes, the lesser is %.2f of the other, want %.2f", test.name, got[0], got[1], ratio, least)
		}
	}
}
