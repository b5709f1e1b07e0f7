package services

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

// sticky returns a Table with one Service that has several backends and ClientIP affinity for ten seconds.
func sticky() (*Table, Config) {
	c := Config{Services: []*Service{{
		Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Affinity: 10 * time.Second,
		Ports:     []Port{{Name: "web", Protocol: packet.TCP, Port: 80}},
		Endpoints: eps("10.0.0.1 a rs", "10.0.0.2 a rs", "10.0.0.3 b rs", "10.0.0.4 b rs"),
	}}}
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
		next := *c.Services[0]
		next.PublishNotReady = true
		c.Services = []*Service{&next}
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

func TestSessionsAreBounded(t *testing.T) {
	var s sessions
	for i := range 3 * sessionShards * maxSessions {
		s.turn(sessionKey{client: packet.Addr{byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)}}, time.Second)
	}
	n := 0
	for i := range s.shards {
		n += len(s.shards[i].known)
	}
	if n != sessionShards*maxSessions {
		t.Errorf("%d clients are remembered, want %d", n, sessionShards*maxSessions)
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
				c.Services = slices.Clone(c.Services)
				first := table.Pick(tuple("tcp 10.0.0.9:1000 10.96.0.1:80"))
				s := *c.Services[0]
				s.Endpoints = slices.Clone(s.Endpoints)
				for i := range s.Endpoints {
					if packet.AddrFrom(s.Endpoints[i].Addr) == first.To.Addr {
						change(&s.Endpoints[i])
					}
				}
				c.Services[0] = &s
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
	s := *c.Services[0]
	s.Endpoints = slices.Clone(s.Endpoints)
	for i := range s.Endpoints {
		s.Endpoints[i].Ready, s.Endpoints[i].Terminating = false, true
	}
	c.Services = []*Service{&s}
	if table, _ = table.Update(c); from(table, "10.0.0.9", 1001) != first {
		t.Error("all terminate and serve: the session was moved for nothing")
	}
}
