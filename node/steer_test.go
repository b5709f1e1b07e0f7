package node_test

import (
	"net/netip"
	"slices"
	"strings"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/services"
)

// changed tells one node alone that endpoints of the only Service have changed.
func changed(t *testing.T, m *nodetest.Member, change func(list []services.Endpoint) []services.Endpoint) {
	t.Helper()
	c := m.Config()
	s := *c.Services.Services.At(0)
	s.Endpoints = change(slices.Clone(s.Endpoints))
	c.Services.Services = roll.From([]*services.Service{&s})
	if err := m.Set(c); err != nil {
		t.Fatal(err)
	}
}

// ends makes the endpoints of pods terminate.
func ends(pods ...*nodetest.Pod) func([]services.Endpoint) []services.Endpoint {
	return func(list []services.Endpoint) []services.Endpoint {
		for i := range list {
			if slices.ContainsFunc(pods, func(p *nodetest.Pod) bool { return p.Name == list[i].ID }) {
				list[i].Ready, list[i].Terminating = false, true
			}
		}
		return list
	}
}

// left removes the endpoints of pods.
func left(pods ...*nodetest.Pod) func([]services.Endpoint) []services.Endpoint {
	return func(list []services.Endpoint) []services.Endpoint {
		return slices.DeleteFunc(list, func(e services.Endpoint) bool {
			return slices.ContainsFunc(pods, func(p *nodetest.Pod) bool { return p.Name == e.ID })
		})
	}
}

// TestTerminatingPodGetsNoConnections: node 2 knows that its pods terminate, and the nodes of the clients do not yet.
// New connections through the Service go elsewhere: to another pod of node 2, then to one of node 3, also when the pod
// is gone. Connections that were there go on, and whoever asks for the pod itself gets it.
func TestTerminatingPodGetsNoConnections(t *testing.T) {
	c := nodetest.New(t, 3)
	n1, n2, n3 := c.Members[0], c.Members[1], c.Members[2]
	from := n1.Pod(3)
	a, b, far := n2.Pod(4), n2.Pod(5), n3.Pod(6)
	for _, p := range []*nodetest.Pod{a, b, far} {
		serve(t, p, 8080)
	}
	s := web(30080, a, b, far)
	c.Serve(s)
	outside := func() client { return dialNodePort(t, n1, "tcp", 30080) }
	ways := map[string]func() client{
		"IPv4":      func() client { return dial(t, from, "tcp", netip.AddrPortFrom(s.ClusterIPs[0], 80)) },
		"IPv6":      func() client { return dial(t, from, "tcp", netip.AddrPortFrom(s.ClusterIPs[1], 80)) },
		"node port": outside,
	}
	who := func(when string, c client) (name, seen string) {
		t.Helper()
		answer, err := c.ask("hello")
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		name, seen, _ = strings.Cut(answer, " ")
		seen, _, _ = strings.Cut(seen, " ")
		return name, seen
	}
	var old []client // connections to a that are there before
	for len(old) < 3 {
		c := dial(t, from, "tcp", netip.AddrPortFrom(s.ClusterIPs[0], 80))
		if name, _ := who("before", c); name == a.Name {
			old = append(old, c)
		}
	}
	check := func(when string, gone ...*nodetest.Pod) {
		t.Helper()
		for way, open := range ways {
			got := map[string]int{}
			for range 30 {
				c := open()
				name, seen := who(when+", "+way, c)
				got[name]++
				// A pod of the same node sees the client itself, one of a third node sees node 2.
				if way == "IPv4" && name == b.Name && seen != from.Addrs[0].String() {
					t.Errorf("%s: %s sees %s, want the client", when, name, seen)
				}
				_ = c.Close()
			}
			for _, p := range gone {
				if got[p.Name] > 0 {
					t.Errorf("%s, %s: %s got %d connections of 30", when, way, p.Name, got[p.Name])
				}
			}
		}
	}
	changed(t, n2, ends(a))
	check("one terminates", a)
	for _, c := range old {
		if name, _ := who("a connection from before", c); name != a.Name {
			t.Errorf("a connection from before went to %s", name)
		}
	}
	for i, addr := range a.Addrs {
		if name, seen := who("to the pod itself", dial(t, from, "tcp", netip.AddrPortFrom(addr, 8080))); name != a.Name || seen != from.Addrs[i].String() {
			t.Errorf("%s, asked by its own address, is answered for by %s, which sees %s", a.Name, name, seen)
		}
	}
	changed(t, n2, ends(a, b))
	check("both terminate", a, b)
	changed(t, n2, left(a, b))
	check("both have left the Service", a, b)
	for _, p := range []*nodetest.Pod{a, b} {
		if !n2.Detach("default/" + p.Name) {
			t.Fatal("it was not attached")
		}
	}
	check("both are gone", a, b)
}

// TestSteeredOnce: two nodes each know that their own pod terminates, and take the other's for ready. A connection goes
// once from one to the other, and not back.
func TestSteeredOnce(t *testing.T) {
	c := nodetest.New(t, 3)
	n1, n2, n3 := c.Members[0], c.Members[1], c.Members[2]
	from, a, b := n1.Pod(3), n2.Pod(4), n3.Pod(5)
	serve(t, a, 8080)
	serve(t, b, 8080)
	s := web(0, a, b)
	c.Serve(s)
	changed(t, n2, ends(a))
	changed(t, n3, ends(b))
	got := map[string]int{}
	for range 30 {
		c := dial(t, from, "tcp", netip.AddrPortFrom(s.ClusterIPs[0], 80))
		answer, err := c.ask("hello")
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(answer, " ")
		got[name]++
		_ = c.Close()
	}
	if got[a.Name]+got[b.Name] != 30 || got[a.Name] == 0 || got[b.Name] == 0 {
		t.Errorf("answered by %v", got)
	}
}

// TestNobodyToSteerTo: the last pod of a Service serves while it terminates (KEP-1669).
func TestNobodyToSteerTo(t *testing.T) {
	c := nodetest.New(t, 2)
	from, a := c.Members[0].Pod(3), c.Members[1].Pod(4)
	serve(t, a, 8080)
	s := web(0, a)
	c.Serve(s)
	changed(t, c.Members[1], ends(a))
	once(t, from, "tcp", netip.AddrPortFrom(s.ClusterIPs[0], 80))
}
