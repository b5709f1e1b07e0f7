package services

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/roll"
)

// anotherTable is a Table of node a with one Service, of port 80 and node port 30080.
func anotherTable(t *testing.T, edit func(*Service)) *Table {
	t.Helper()
	s := &Service{
		Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"),
		Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80, NodePort: 30080}},
	}
	edit(s)
	table, problems := NewTable(Config{
		Node: "a", NodeAddrs: addresstest.Addrs("192.0.2.1"), OwnAddrs: addresstest.Addrs("192.0.2.1"),
		ServiceCIDRs: addresstest.Prefixes("10.96.0.0/16"), Services: roll.From([]*Service{s}),
	})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return table
}

// TestAnother: while some backends have refused a connection, it gets each of the others once, and then none.
func TestAnother(t *testing.T) {
	list := func(n int) (specs []string) {
		for i := range n {
			specs = append(specs, fmt.Sprintf("10.0.0.%d a rs", i+1))
		}
		return specs
	}
	for _, n := range []int{1, 2, 16, 17, 40} {
		for _, m := range []balance.Method{balance.Hash, balance.Maglev, balance.Random, balance.RoundRobin, balance.LeastConnections, balance.EWMA} {
			t.Run(fmt.Sprintf("%d/%v", n, m), func(t *testing.T) {
				table := anotherTable(t, func(s *Service) { s.Balance, s.Endpoints = m, eps(list(n)...) })
				f := tuple("tcp 10.9.0.1:30000 10.96.0.1:80")
				refused := []uint64{table.Pick(f).Backend}
				for len(refused) < n {
					c := table.Another(f, refused)
					if c.Kind != packet.Picked || slices.Contains(refused, c.Backend) || !table.Leads(f, c.Backend, c.To.Port) {
						t.Fatalf("after %d of %d: %+v", len(refused), n, c)
					}
					refused = append(refused, c.Backend)
				}
				if c := table.Another(f, refused); c.Kind == packet.Picked {
					t.Errorf("after all: %+v", c)
				}
				if c := table.AnotherOnHost(tuple("tcp 192.0.2.9:30000 192.0.2.1:30080"), refused[1:]); c.Kind != packet.Picked || c.Backend != refused[0] {
					t.Errorf("through the node port: %+v, want %x", c, refused[0])
				}
				if n := testing.AllocsPerRun(10, func() { table.Another(f, refused) }); n != 0 {
					t.Errorf("%v allocations", n)
				}
			})
		}
	}
}

// TestAnotherAsWithout: what the hash chooses is what it chooses when those that refused are gone.
func TestAnotherAsWithout(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	all := []string{"10.0.0.1 a rs", "10.0.0.2 a rs", "10.0.0.3 b rs", "10.0.0.4 b rs", "10.0.0.5 b rs"}
	table := anotherTable(t, func(s *Service) { s.Endpoints = eps(all...) })
	for range 200 {
		f := tuple("tcp 10.9.0.1:1 10.96.0.1:80")
		f.SrcPort = uint16(rnd.Uint32())
		left, refused := slices.Clone(all), []uint64(nil)
		for len(left) > 1 {
			b := table.Pick(f)
			if len(refused) > 0 {
				b = table.Another(f, refused)
			}
			refused = append(refused, b.Backend)
			left = slices.DeleteFunc(left, func(s string) bool { return ep(s).Addr == b.To.Addr.Netip() })
			without := anotherTable(t, func(s *Service) { s.Endpoints = eps(left...) })
			if got, want := table.Another(f, refused).To, without.Pick(f).To; got != want {
				t.Fatalf("seed %d: %v, want %v", seed, got, want)
			}
		}
	}
}

// TestNoOther: what leads to one server, or to none, has no other. Nor has a client whom the Service's SourceRanges
// have left out since it was led to its backend.
func TestNoOther(t *testing.T) {
	table := anotherTable(t, func(s *Service) {
		s.Endpoints = eps("10.0.0.1 a rs", "10.0.0.2 a rs")
		s.ExternalIPs, s.SourceRanges = addresstest.Addrs("203.0.113.1"), addresstest.Prefixes("198.51.100.0/24")
	})
	for _, c := range []struct {
		from, to string
		want     packet.ChoiceKind
	}{
		{"10.9.0.1", "10.96.0.1:81", packet.NotFrontend}, {"10.9.0.1", "10.96.0.7:80", packet.NotFrontend},
		{"10.9.0.1", "10.0.0.1:8080", packet.NotFrontend}, {"10.9.0.1", "192.0.2.1:22", packet.NotFrontend},
		{"10.9.0.1", "203.0.113.1:80", packet.NotFrontend}, {"198.51.100.7", "203.0.113.1:80", packet.Picked},
	} {
		f := tuple("tcp " + c.from + ":30000 " + c.to)
		for name, another := range map[string]func(*packet.Tuple, []uint64) packet.Choice{"": table.Another, " on the host": table.AnotherOnHost} {
			if got := another(f, []uint64{1}); got.Kind != c.want {
				t.Errorf("%s to %s%s: %+v, want %v", c.from, c.to, name, got, c.want)
			}
		}
	}
}

// TestAnotherInASession: a client whose server refuses gets the same other one each time, and keeps its session for
// when the server is back.
func TestAnotherInASession(t *testing.T) {
	table := anotherTable(t, func(s *Service) {
		s.Affinity, s.Endpoints = time.Hour, eps("10.0.0.1 a rs", "10.0.0.2 a rs", "10.0.0.3 a rs")
	})
	f := tuple("tcp 10.9.0.1:30000 10.96.0.1:80")
	first := table.Pick(f)
	other := table.Another(f, []uint64{first.Backend})
	f.SrcPort++
	if again := table.Another(f, []uint64{first.Backend}); again != other || other.Backend == first.Backend {
		t.Errorf("%+v, then %+v", other, again)
	}
	if again := table.Pick(f); again != first {
		t.Errorf("the session has moved to %+v", again)
	}
}
