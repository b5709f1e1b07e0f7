package node_test

import (
	"net/netip"
	"strings"
	"testing"

	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/test/await"
)

// spread opens n connections by dial, keeps them open, and adds up which backend answers.
func spread(t *testing.T, got map[string]int, n int, dial func() client) (kept []client) {
	t.Helper()
	for range n {
		c := dial()
		answer, err := c.ask("hello")
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(answer, " ")
		got[name]++
		kept = append(kept, c)
	}
	return kept
}

// TestLeastConnections: connections that stay open are spread evenly, whichever way they come, and after the agent has
// begun again with the flows of the one before. Connections that are closed count no longer, and the metrics say what
// happened.
func TestLeastConnections(t *testing.T) {
	c := nodetest.New(t, 2)
	m := c.Members[0]
	from := m.Pod(3)
	var backends []*nodetest.Pod
	for i := range 2 {
		p := c.Members[i%2].Pod(byte(4 + i))
		serve(t, p, 8080)
		backends = append(backends, p)
	}
	s := web(30080, backends...)
	s.Balance = balance.LeastConnections
	c.Serve(s)
	vip := netip.AddrPortFrom(s.ClusterIPs[0], 80)
	inside := func() client { return dial(t, from, "tcp", vip) }
	outside := func() client { return dialNodePort(t, m, "tcp", 30080) }
	even := func(when string, got map[string]int, total int) {
		t.Helper()
		for _, p := range backends {
			if n := got[p.Name]; n < total/2-1 || n > total/2+1 {
				t.Errorf("%s: %v of %d, want half each", when, got, total)
			}
		}
	}
	got := map[string]int{}
	spread(t, got, 20, inside)
	even("from a pod", got, 20)
	m.Restart()
	kept := spread(t, got, 20, inside)
	even("after a restart", got, 40)
	spread(t, got, 10, outside)
	even("through the node port", got, 50)

	first := backends[0].Name
	for _, c := range kept {
		if answer, err := c.ask("who"); err != nil {
			t.Fatal(err)
		} else if strings.HasPrefix(answer, first+" ") {
			_ = c.Close()
			got[first]--
		}
	}
	// Until the other has as few, the one that lost its connections gets all.
	await.Until(t, "closed connections count no longer", func() bool {
		probe := map[string]int{}
		for _, c := range spread(t, probe, 3, inside) {
			_ = c.Close()
		}
		return probe[first] == 3
	})

	list := m.Counters()
	if n := list.Find("tapestry_service_answer_seconds").Values; len(n) != 2 || n[1].Labels[0] != "(others)" || n[0].Count < 33 {
		t.Errorf("times to the first answer: %+v", n)
	}
	ready := 0.0
	for _, v := range list.Find("tapestry_service_endpoints").Values {
		if v.Labels[1] == s.Name && v.Labels[2] == "ready" {
			ready = v.N
		}
	}
	if ready != 4 {
		t.Errorf("%v endpoints are ready, want 4, two of each family", ready)
	}
}
