package services

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"tapestry.dev/tapestry/roll"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/affinity"
)

// sticky returns a Table with one Service that has several backends and ClientIP affinity for ten seconds.
func sticky() (*Table, Config) {
	c := Config{Services: roll.From([]*Service{{
		Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Affinity: 10 * time.Second,
		Ports:     []Port{{Name: "web", Protocol: packet.TCP, Port: 80}},
		Endpoints: eps("10.0.0.1 a rs", "10.0.0.2 a rs", "10.0.0.3 b rs", "10.0.0.4 b rs"),
	}})}
	table, _ := NewTable(c)
	return table, c
}

func from(table *Table, client string, port int) uint64 {
	return table.Pick(tuple(fmt.Sprintf("tcp %s:%d 10.96.0.1:80", client, port))).Backend
}

// The end-to-end tests of Kubernetes ask sixteen times and expect one backend. Then they wait for twice the timeout,
// at most ten times, and expect another backend.
func TestSessionTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, c := sticky()
		first := from(table, "10.0.0.9", 1000)
		for i := range 16 {
			time.Sleep(9 * time.Second) // each connection extends the session
			if got := from(table, "10.0.0.9", 1001+i); got != first {
				t.Fatalf("connection %d within the session went elsewhere", i)
			}
		}
		seen := map[uint64]bool{first: true}
		for i := range 10 {
			time.Sleep(20 * time.Second)
			b := from(table, "10.0.0.9", 2000+i)
			seen[b] = true
			if from(table, "10.0.0.9", 3000+i) != b {
				t.Fatal("the next session does not hold")
			}
		}
		if len(seen) < 2 {
			t.Error("every session had the same backend")
		}
		// A new Table keeps the sessions.
		before := from(table, "10.0.0.9", 4000)
		next := *c.Services.At(0)
		next.PublishNotReady = true
		c.Services = roll.From([]*Service{&next})
		if table, _ = table.Update(c); from(table, "10.0.0.9", 4001) != before {
			t.Error("an update of the Service ended the session")
		}
	})
}

// Restarted agents and other nodes agree on a first session.
func TestFirstSessionNeedsNoMemory(t *testing.T) {
	one, _ := sticky()
	other, _ := sticky()
	for i := range 100 {
		client := fmt.Sprintf("10.0.1.%d", i)
		if from(one, client, 1) != from(other, client, 2) {
			t.Fatalf("client %s has two backends", client)
		}
	}
}

// TestSessionEndsWithEndpoint checks that a client that keeps coming leaves an endpoint that is no longer ready. The
// exception is an endpoint that terminates when none is ready (KEP-1669). All later connections of the client have one
// new endpoint (kubernetes/kubernetes#110302).
func TestSessionEndsWithEndpoint(t *testing.T) {
	for name, change := range map[string]func(*Endpoint){
		"not ready":               func(e *Endpoint) { e.Ready, e.Serving = false, false },
		"terminates and serves":   func(e *Endpoint) { e.Ready, e.Terminating = false, true },
		"terminates":              func(e *Endpoint) { e.Ready, e.Serving, e.Terminating = false, false, true },
		"its port is another now": func(e *Endpoint) { e.Ports = []EndpointPort{{"other", packet.TCP, 8080}} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table, c := sticky()
				first := table.Pick(tuple("tcp 10.0.0.9:1000 10.96.0.1:80"))
				s := *c.Services.At(0)
				s.Endpoints = slices.Clone(s.Endpoints)
				for i := range s.Endpoints {
					if packet.AddrFrom(s.Endpoints[i].Addr) == first.To.Addr {
						change(&s.Endpoints[i])
					}
				}
				c.Services = c.Services.With(roll.Edit[*Service]{At: 0, To: &s})
				table, _ = table.Update(c)
				next := from(table, "10.0.0.9", 1001)
				for i := range 50 {
					time.Sleep(9 * time.Second)
					if b := from(table, "10.0.0.9", 1002+i); b == first.Backend || b != next {
						t.Fatalf("connection %d went to %x; the first one to %x, which is no longer ready, the second one to %x", i, b, first.Backend, next)
					}
				}
				if table.Backend(next, packet.Addr{}) != packet.BackendReady || table.Backend(first.Backend, first.To.Addr) == packet.BackendReady {
					t.Error("the endpoint that was left is ready, or the new one is not")
				}
			})
		})
	}
	table, c := sticky()
	first := from(table, "10.0.0.9", 1000)
	s := *c.Services.At(0)
	s.Endpoints = slices.Clone(s.Endpoints)
	for i := range s.Endpoints {
		s.Endpoints[i].Ready, s.Endpoints[i].Terminating = false, true
	}
	c.Services = roll.From([]*Service{&s})
	if table, _ = table.Update(c); from(table, "10.0.0.9", 1001) != first {
		t.Error("all terminate and serve: the session was moved for nothing")
	}
}

// scaled returns the Config of a Service with affinity and n endpoints on node "a".
func scaled(n int) Config {
	s := manyService(n)
	s.Affinity = 3 * time.Hour
	return Config{Node: "a", Services: roll.From([]*Service{&s})}
}

// TestScalingMovesNobody: with the hash alone, 7 of 12 clients would move from 2 to 4 endpoints, and 11 of 12 from 16
// to 17. Only clients of an endpoint that is gone move.
func TestScalingMovesNobody(t *testing.T) {
	client := func(table *Table, i int) packet.Choice {
		return table.Pick(tuple(fmt.Sprintf("tcp 10.0.1.%d:1000 10.96.0.1:80", i+1)))
	}
	for _, sizes := range [][]int{{2, 4}, {16, 17}, {17, 16, 40, 3, 300}} {
		table, _ := NewTable(scaled(sizes[0]))
		const clients = 12
		var had [clients]packet.Choice
		for i := range had {
			had[i] = client(table, i)
		}
		for _, n := range sizes[1:] {
			table, _ = table.Update(scaled(n))
			moved := 0
			for i := range had {
				now := client(table, i)
				if lives := table.Backend(had[i].Backend, had[i].To.Addr) == packet.BackendReady; lives && now != had[i] {
					moved++
				}
				had[i] = now
			}
			if moved > 0 {
				t.Errorf("%v: %d of %d clients moved with %d endpoints", sizes, moved, clients, n)
			}
		}
	}
}

// TestEndpointReturns: an endpoint that was gone, or not ready, for a while gets none of its clients back, whether or
// not they connected in between. Those who did not may get it by chance.
func TestEndpointReturns(t *testing.T) {
	for name, change := range map[string]func(s *Service){
		"gone":            func(s *Service) { s.Endpoints = s.Endpoints[:3] },
		"not ready":       func(s *Service) { s.Endpoints[3].Ready, s.Endpoints[3].Serving = false, false },
		"affinity is off": func(s *Service) { s.Affinity = 0 },
	} {
		before, without := scaled(4), scaled(4)
		change(without.Services.At(0))
		table, _ := NewTable(before)
		pick := func(i int) packet.Choice {
			return table.Pick(tuple(fmt.Sprintf("tcp 10.0.%d.%d:1000 10.96.0.1:80", 1+i/200, i%200)))
		}
		const clients = 400
		var first, meanwhile [clients]packet.Choice
		for i := range first {
			first[i] = pick(i)
		}
		old := table
		table, _ = table.Update(without)
		if n := table.Affinity.Stats().Sessions; name != "affinity is off" && (n < clients/2 || n == clients) {
			t.Errorf("%s: %d of %d sessions are left", name, n, clients)
		}
		for i := range clients / 2 {
			meanwhile[i] = pick(i)
		}
		// The packet path may ask the old Table for a moment.
		late := tuple("tcp 10.0.9.9:1000 10.96.0.1:80")
		for i := 0; old.Pick(late).Backend != lastOf(old); i++ {
			late.Src[14] = byte(100 + i)
		}
		table, _ = table.Update(before)
		for i := range clients / 2 {
			if got := pick(i); name != "affinity is off" && got != meanwhile[i] {
				t.Fatalf("%s: client %d had %v first and %v meanwhile, has %v now", name, i, first[i].To, meanwhile[i].To, got.To)
			}
		}
		s := before.Services.At(0)
		k := affinity.Key{Client: late.Src, Port: portID(s, &s.Ports[0])}
		if got := table.Affinity.Find(&k, s.Affinity); got.Backend != 0 {
			t.Errorf("%s: a session that began with the old Table lasts: %+v", name, got)
		}
		if n := table.Affinity.Stats().Sessions; n >= clients {
			t.Errorf("%s: %d sessions, the endpoint has its clients back", name, n)
		}
	}
}

// lastOf returns the backend of the fourth endpoint of scaled.
func lastOf(table *Table) uint64 {
	s := table.config.Services.At(0)
	return backendID(podID(s.Endpoints[3].ID, s.Endpoints[3].Addr), portID(s, &s.Ports[0]), 8080)
}

// TestFrontendsShareSessions: all frontends of a Service port agree on a client's backend where its policies permit,
// for packets and for sockets of the host. Another port of the Service has sessions of its own, as with kube-proxy.
func TestFrontendsShareSessions(t *testing.T) {
	config := func(n int) Config {
		c := scaled(n)
		s := c.Services.At(0)
		s.ExternalIPs = addresstest.Addrs("198.51.100.1")
		s.Ports[0].NodePort = 30080
		s.Ports = append(s.Ports, Port{Name: "more", Protocol: packet.TCP, Port: 81})
		for i := range s.Endpoints {
			s.Endpoints[i].Node = "a"
			s.Endpoints[i].Ports = append(slices.Clone(s.Endpoints[i].Ports), EndpointPort{"more", packet.TCP, 8081})
		}
		c.NodeAddrs, c.NodeNames, c.OwnAddrs = addresstest.Addrs("192.0.2.1", "192.0.2.2"), []string{"a", "b"}, addresstest.Addrs("192.0.2.1")
		return c
	}
	differ := 0
	for i := range 50 {
		src := fmt.Sprintf("tcp 203.0.113.%d:1000 ", i+1)
		table, _ := NewTable(config(2))
		first := table.Pick(tuple(src + "10.96.0.1:80"))
		table, _ = table.Update(config(20))
		for _, dst := range []string{"10.96.0.1:80", "198.51.100.1:80", "192.0.2.1:30080", "192.0.2.2:30080"} {
			if got := table.Pick(tuple(src + dst)); got != first {
				t.Errorf("%s%s: %v, want %v", src, dst, got.To, first.To)
			}
		}
		for _, dst := range []string{"192.0.2.1:30080", "127.0.0.1:30080"} {
			if got := table.PickOnHost(tuple(src + dst)); got != first {
				t.Errorf("on the host %s%s: %v, want %v", src, dst, got.To, first.To)
			}
		}
		if other := table.Pick(tuple(src + "10.96.0.1:81")); other.To.Addr != first.To.Addr {
			differ++
		}
	}
	if differ < 25 {
		t.Errorf("the other port has the same endpoint for all but %d of 50 clients", differ)
	}
}

// TestSessionUnderLocalPolicy: a client keeps its endpoint of this node where only this node's may be chosen, and a
// session with each other node whose endpoints it asks for.
func TestSessionUnderLocalPolicy(t *testing.T) {
	config := func(n int) Config {
		c := scaled(n)
		s := c.Services.At(0)
		s.Ports[0].NodePort, s.InternalLocal, s.ExternalLocal = 30080, true, true
		for i := range s.Endpoints {
			s.Endpoints[i].Node = []string{"a", "b", "c"}[i%3]
		}
		c.NodeAddrs, c.NodeNames = addresstest.Addrs("192.0.2.1", "192.0.2.2", "192.0.2.3"), []string{"a", "b", "c"}
		c.OwnAddrs, c.ClusterCIDRs = addresstest.Addrs("192.0.2.1"), addresstest.Prefixes("10.0.0.0/8")
		return c
	}
	for i := range 50 {
		src := fmt.Sprintf("tcp 10.0.1.%d:1000 ", i+1)
		dsts := []string{"10.96.0.1:80", "192.0.2.2:30080", "192.0.2.3:30080"}
		table, _ := NewTable(config(6))
		var first []packet.Choice
		for _, dst := range dsts {
			first = append(first, table.Pick(tuple(src+dst)))
		}
		table, _ = table.Update(config(60))
		for range 3 {
			for j, dst := range dsts {
				if got := table.Pick(tuple(src + dst)); got != first[j] {
					t.Fatalf("%s%s: %v, want %v", src, dst, got.To, first[j].To)
				}
			}
			// Any endpoint will do at this node's own address, that of the session included.
			if got := table.Pick(tuple(src + "192.0.2.1:30080")); got != first[0] {
				t.Fatalf("%s at the node's own address: %v, want %v", src, got.To, first[0].To)
			}
		}
	}
}

// slowMemory is the slow, obviously right memory of sessions.
type slowMemory map[slowKey]*slowSession

type slowKey struct {
	client        packet.Addr
	service, port string
	proto         packet.Proto
	there         string
}

type slowSession struct {
	backend uint64
	turn    uint32
	last    time.Time
}

// session returns the client's session for a new connection.
func (m slowMemory) session(k slowKey, timeout time.Duration) *slowSession {
	s := m[k]
	switch {
	case s == nil:
		s = &slowSession{}
		m[k] = s
	case time.Since(s.last) > timeout:
		s.backend = 0
		s.turn++
	}
	s.last = time.Now()
	return s
}

// forget ends the sessions whose backend no endpoint of a Service with affinity is, or one that may not be chosen.
func (m slowMemory) forget(c *Config) {
	may := map[uint64]bool{}
	for _, s := range c.Services.All() {
		for i := range s.Ports {
			for _, e := range s.Endpoints {
				for _, p := range e.Ports {
					if s.Affinity > 0 && p.Name == s.Ports[i].Name && p.Protocol == s.Ports[i].Protocol && stateOf(s, &e) >= packet.BackendServing {
						may[backendID(podID(e.ID, e.Addr), portID(s, &s.Ports[i]), p.Port)] = true
					}
				}
			}
		}
	}
	for k, s := range m {
		if !may[s.backend] {
			delete(m, k)
		}
	}
}

// FuzzAffinityTwin compares Tables with session affinity, over many changes of their endpoints, with a slow memory.
func FuzzAffinityTwin(f *testing.F) {
	for i := range uint64(100) {
		f.Add(i, i*11)
	}
	f.Fuzz(func(t *testing.T, a, b uint64) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(a, b))
			s := manyService(12)
			s.Ports = []Port{{"web", packet.TCP, 80, 30080}, {"dns", packet.UDP, 53, 0}}
			s.ExternalIPs, s.Affinity = addresstest.Addrs("198.51.100.1"), time.Minute
			s.InternalLocal, s.ExternalLocal, s.PublishNotReady = r.IntN(3) == 0, r.IntN(2) == 0, r.IntN(9) == 0
			for i := range s.Endpoints {
				s.Endpoints[i].Ports = []EndpointPort{{"web", packet.TCP, 8080}, {"dns", packet.UDP, 5353}}
				s.Endpoints[i].Node = string(rune('a' + r.IntN(3)))
			}
			all := s.Endpoints
			c := Config{Node: "a", NodeAddrs: addresstest.Addrs("192.0.2.1", "192.0.2.2"), NodeNames: []string{"a", "b"},
				OwnAddrs: addresstest.Addrs("192.0.2.1"), ClusterCIDRs: addresstest.Prefixes("10.9.0.0/16")}
			var table *Table
			memory := slowMemory{}
			for range 30 {
				next := s
				next.Endpoints = nil
				for i := range all {
					if r.IntN(4) == 0 {
						all[i].Ready, all[i].Serving, all[i].Terminating = r.IntN(3) > 0, r.IntN(2) == 0, r.IntN(3) == 0
					}
					if r.IntN(4) > 0 {
						next.Endpoints = append(next.Endpoints, all[i])
					}
				}
				c.Services = roll.From([]*Service{&next})
				if r.IntN(20) == 0 {
					c.Services = roll.List[*Service]{}
				}
				table, _ = table.Update(c)
				memory.forget(&c)
				for range 40 {
					if r.IntN(20) == 0 {
						time.Sleep(time.Duration(r.IntN(90)) * time.Second)
					}
					dst := []string{"10.96.0.1:80", "198.51.100.1:80", "192.0.2.1:30080", "192.0.2.2:30080"}[r.IntN(4)]
					proto := "tcp"
					if r.IntN(4) == 0 {
						proto, dst = "udp", "10.96.0.1:53"
					}
					client := netip.AddrFrom4([4]byte{10, byte(8 + r.IntN(2)), 0, byte(r.IntN(8))})
					tu := tuple(fmt.Sprintf("%s %s:%d %s", proto, client, r.IntN(60000), dst))
					got, want := table.Pick(tu), slowPick(&c, tu, memory)
					if got != want {
						t.Fatalf("%s from %s to %s: got %v %v, want %v %v", proto, client, dst, got.Kind, got.To, want.Kind, want.To)
					}
				}
			}
		})
	})
}

// BenchmarkPickAffinity measures the first packet of a flow, for known clients and for one with ever new addresses.
func BenchmarkPickAffinity(b *testing.B) {
	for _, bb := range []struct {
		name                 string
		endpoints, addresses int
	}{{"known", 8, 2000}, {"known", 1000, 2000}, {"crowd", 8, 1 << 20}} {
		b.Run(fmt.Sprintf("%s/endpoints=%d", bb.name, bb.endpoints), func(b *testing.B) {
			s := manyService(bb.endpoints)
			s.Affinity = time.Hour
			table := tableOf(s)
			tu := *tuple("tcp 10.0.0.1:1 10.96.0.1:80")
			i := 0
			pick := func() {
				tu.Src[13], tu.Src[14], tu.Src[15] = byte(i>>16), byte(i>>8), byte(i)
				table.Pick(&tu)
				i = (i + 1) % bb.addresses
			}
			for range min(bb.addresses, 1<<17) {
				pick()
			}
			b.ReportAllocs()
			for b.Loop() {
				pick()
			}
		})
	}
}
