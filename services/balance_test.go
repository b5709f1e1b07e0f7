package services

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"tapestry.dev/tapestry/roll"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/netstack/packet"
)

// balanced returns a Service with n backends and a method.
func balanced(n int, m balance.Method) Service {
	s := manyService(n)
	s.Balance = m
	return s
}

// seeded makes the random numbers of a Table the test's own.
func seeded(t *Table) *Table {
	r := rand.New(rand.NewPCG(1, 2))
	t.Loads.Rand = r.Uint64
	return t
}

// picks returns how often each backend was chosen for n flows, and calls picked with each.
func picks(t *testing.T, table *Table, n int, picked func(packet.Choice)) map[uint64]int {
	t.Helper()
	got := map[uint64]int{}
	for _, f := range flows(n) {
		c := table.Pick(&f)
		if c.Kind != packet.Picked {
			t.Fatalf("got %+v", c)
		}
		got[c.Backend]++
		picked(c)
	}
	return got
}

// Backends that are chosen by load, or in turn, get the same, and a Maglev table gives each about the same.
func TestEqualBackendsGetTheSame(t *testing.T) {
	for m, most := range map[balance.Method]float64{
		balance.Random: 0.15, balance.RoundRobin: 0.001, balance.LeastConnections: 0.01, balance.EWMA: 0.15, balance.Maglev: 0.2,
	} {
		table := seeded(tableOf(balanced(10, m)))
		got := picks(t, table, 10_000, func(c packet.Choice) {
			if load := table.Loads.Find(c.Backend); (load != nil) != m.Counts() || c.Counted != m.Counts() {
				t.Fatalf("%s: counted is %v, load %v", m, c.Counted, load)
			} else if load != nil {
				load.Begin()
			}
		})
		for id, n := range got {
			if d := float64(n-1000) / 1000; len(got) != 10 || d > most || d < -most {
				t.Errorf("%s: backend %x got %d of 10,000, want %.0f %% about 1,000", m, id, n, 100*most)
			}
		}
	}
}

// A backend with more connections gets none until the others have as many.
func TestFewerConnectionsFirst(t *testing.T) {
	table := seeded(tableOf(balanced(2, balance.LeastConnections)))
	first := table.Pick(&flows(1)[0])
	table.Loads.Find(first.Backend).Add(50, 0)
	got := picks(t, table, 50, func(c packet.Choice) { table.Loads.Find(c.Backend).Begin() })
	if got[first.Backend] > 1 {
		t.Errorf("the one with 50 connections got %d of the next 50", got[first.Backend])
	}
}

// Maglev is the same on every node, whatever the number of backends, and moves few when one goes. The other methods
// that are functions of the client stay as they were.
func TestMaglevOnAllNodes(t *testing.T) {
	for _, n := range []int{2, 10, 40} {
		a, b := tableOf(balanced(n, balance.Maglev)), tableOf(balanced(n, balance.Maglev))
		less := balanced(n, balance.Maglev)
		gone := less.Endpoints[0]
		less.Endpoints = less.Endpoints[1:]
		c, moved := tableOf(less), 0
		for _, f := range flows(4000) {
			was, now := a.Pick(&f), c.Pick(&f)
			if b.Pick(&f) != was {
				t.Fatalf("%d backends: two nodes choose differently", n)
			}
			if was.To.Addr != packet.AddrFrom(gone.Addr) && was != now {
				moved++
			}
		}
		if moved > 4000/10 {
			t.Errorf("%d backends: %d of 4,000 flows moved that need not", n, moved)
		}
	}
}

// From outside, too, it is the same on every node: a client that asks another node's node port comes to the same
// backend.
func TestMaglevAtNodePorts(t *testing.T) {
	for _, m := range []balance.Method{balance.Maglev, balance.Hash} {
		s := balanced(10, m)
		s.Ports[0].NodePort = 30080
		of := func(node, own string) *Table {
			table, _ := NewTable(Config{
				Node: node, OwnAddrs: addresstest.Addrs(own), NodeAddrs: addresstest.Addrs("192.0.2.1", "192.0.2.2"), NodeNames: []string{"a", "b"},
				Services: roll.From([]*Service{&s}),
			})
			return table
		}
		a, b := of("a", "192.0.2.1"), of("b", "192.0.2.2")
		got := map[uint64]int{}
		for i := range 4000 {
			client := fmt.Sprintf("tcp 203.0.113.%d:%d ", 1+i%8, 30000+i/8)
			one, other := a.PickOnHost(tuple(client+"192.0.2.1:30080")), b.PickOnHost(tuple(client+"192.0.2.2:30080"))
			if one != other || one.Kind != packet.Picked {
				t.Fatalf("%s, %s: node a chooses %+v, node b %+v", m, client, one, other)
			}
			got[one.Backend]++
		}
		for id, n := range got {
			if len(got) != 10 || n < 320 || n > 480 {
				t.Errorf("%s: backend %x got %d of 4,000, want 400 more or less", m, id, n)
			}
		}
	}
}

// With session affinity a client keeps its backend, whatever the method.
func TestAffinityBeatsBalance(t *testing.T) {
	s := balanced(10, balance.RoundRobin)
	s.Affinity = time.Hour
	table := tableOf(s)
	f := flows(1)[0]
	first := table.Pick(&f)
	for range 20 {
		f.SrcPort++
		if got := table.Pick(&f); got != first {
			t.Fatalf("got %+v after %+v", got, first)
		}
	}
	if first.Counted {
		t.Error("its connections are counted in vain")
	}
}

// A backend that comes starts slowly, and one that stays keeps its count over a change of the Service. In the first
// Table of a process nobody is new.
func TestRolloutStartsSlowly(t *testing.T) {
	for _, m := range []balance.Method{balance.LeastConnections, balance.EWMA} {
		ten := balanced(11, m)
		nine := ten
		nine.Endpoints = ten.Endpoints[:10]
		table := seeded(Empty(NewState(nil)))
		now := time.Hour
		table.Loads.Clock = func() time.Duration { return now }
		table, _ = table.Update(Config{Services: roll.From([]*Service{&nine})})
		count := func(c packet.Choice) { table.Loads.Find(c.Backend).Begin() }
		old := picks(t, table, 1000, count)
		table, _ = table.Update(Config{Services: roll.From([]*Service{&ten})})
		for id, n := range old {
			if open := table.Loads.Find(id).Open(); open != int64(n) {
				t.Errorf("%s: a backend with %d connections has %d after the change", m, n, open)
			}
		}
		fresh := func(got map[uint64]int) (n int) {
			for id := range got {
				if old[id] == 0 {
					n = got[id]
				}
			}
			return n
		}
		if n := fresh(picks(t, table, 100, count)); n > 40 {
			t.Errorf("%s: the new one got %d of the first 100", m, n)
		}
		now += time.Minute
		if n := fresh(picks(t, table, 100, count)); m == balance.LeastConnections && n < 12 {
			t.Errorf("%s: the new one, which has fewest, got %d of 100 after a minute", m, n)
		}
	}
}

// A method that knows no load gives a new backend its equal part at once, and no more: after one has come, and when
// one takes the place of another.
func TestRolloutSharesAtOnce(t *testing.T) {
	for m, most := range map[balance.Method]float64{balance.RoundRobin: 0.001, balance.Random: 0.15, balance.Maglev: 0.25, balance.Hash: 0.25} {
		all := balanced(12, m)
		of := func(first, n int) Config {
			s := all
			s.Endpoints = all.Endpoints[first : first+n]
			return Config{Services: roll.From([]*Service{&s})}
		}
		table := seeded(Empty(NewState(nil)))
		table, _ = table.Update(of(0, 10))
		before := picks(t, table, 10_000, func(packet.Choice) {})
		for _, step := range []struct {
			what     string
			first, n int
		}{{"one has come", 0, 11}, {"one has taken another's place", 1, 11}} {
			table, _ = table.Update(of(step.first, step.n))
			equal := 1000
			got := picks(t, table, equal*step.n, func(packet.Choice) {})
			fresh := 0
			for id, n := range got {
				if before[id] == 0 {
					fresh++
					t.Logf("%s, %s: the new one got %d of %d", m, step.what, n, equal*step.n)
				}
				if d := float64(n-equal) / float64(equal); d > most || d < -most {
					t.Errorf("%s, %s: backend %x (new: %v) got %d, want %.0f %% about %d", m, step.what, id, before[id] == 0, n, 100*most, equal)
				}
			}
			if fresh != 1 || len(got) != step.n {
				t.Errorf("%s, %s: %d backends were chosen, %d of them new", m, step.what, len(got), fresh)
			}
			before = got
		}
	}
}

// By hash and by a Maglev table each client keeps its backend, whatever the backends have to do: a backend with more
// connections, or a slow one, gets its part as before.
func TestHashKnowsNoLoad(t *testing.T) {
	for _, m := range []balance.Method{balance.Hash, balance.Maglev} {
		for _, n := range []int{10, 40} {
			table := tableOf(balanced(n, m))
			var were []packet.Choice
			before := picks(t, table, 1000*n, func(c packet.Choice) { were = append(were, c) })
			slow := slices.Sorted(maps.Keys(before))[:n/5]
			now := table.Loads.Now()
			for _, load := range table.Loads.Hold(slow) {
				load.Add(1000, 1000)
				load.Answered(time.Minute, now)
				load.Refused(now)
			}
			moved, i := 0, 0
			after := picks(t, table, 1000*n, func(c packet.Choice) {
				if c != were[i] {
					moved++
				}
				i++
			})
			ofSlow, least, most := 0, 1000*n, 0
			for id, got := range after {
				least, most = min(least, got), max(most, got)
				if slices.Contains(slow, id) {
					ofSlow += got
				}
			}
			ratio := float64(ofSlow) / float64(len(slow)) / (float64(1000*n-ofSlow) / float64(n-len(slow)))
			t.Logf("%s, %d backends: a slow one gets %.2f of a quick one's part; one gets %d to %d of 1,000", m, n, ratio, least, most)
			if moved > 0 || ratio < 0.85 || ratio > 1.15 {
				t.Errorf("%s, %d backends: %d clients moved, a slow one gets %.2f of a quick one's part", m, n, moved, ratio)
			}
		}
	}
}

// Loads are kept for Services that ask for them, and for no others; after any number of changes none is left.
func TestLoadsOfTables(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	table := Empty(NewState(nil))
	for i := range 200 {
		var c Config
		want := map[uint64]bool{}
		for j := range r.IntN(4) {
			s := balanced(r.IntN(6), balance.Method(r.IntN(6)))
			s.Name = fmt.Sprint("s", j)
			c.Services = c.Services.Append(&s)
		}
		table, _ = table.Update(c)
		for _, u := range table.units.All() {
			for _, id := range u.held {
				want[id] = true
			}
		}
		for id := range want {
			if table.Loads.Find(id) == nil {
				t.Fatalf("change %d: backend %x has no Load", i, id)
			}
		}
		if got := table.Loads.Len(); got != len(want) {
			t.Fatalf("change %d: %d Loads, want %d", i, got, len(want))
		}
	}
	if table, _ = table.Update(Config{}); table.Loads.Len() != 0 {
		t.Errorf("%d Loads are left", table.Loads.Len())
	}
}

// A slice that flaps does not make round robin begin with the same backend each time.
func TestFlappingRoundRobin(t *testing.T) {
	a, b := balanced(4, balance.RoundRobin), balanced(4, balance.RoundRobin)
	b.Endpoints = slices.Clone(b.Endpoints)
	b.Endpoints[3].Ready = false
	table := seeded(Empty(NewState(nil)))
	got := map[uint64]int{}
	for i := range 2000 {
		table, _ = table.Update(Config{Services: roll.From([]*Service{[]*Service{&a, &b}[i%2]})})
		got[table.Pick(&flows(1)[0]).Backend]++
	}
	counts := slices.Sorted(func(yield func(int) bool) {
		for _, n := range got {
			yield(n)
		}
	})
	if len(counts) != 4 || counts[0] < 200 || counts[3] > 680 {
		t.Errorf("got %v of 2,000, want 250 for the one that flaps and 583 for the others", counts)
	}
}

func TestBalancedPickAllocatesNothing(t *testing.T) {
	for m := balance.Hash; m <= balance.Maglev; m++ {
		table, f := tableOf(balanced(20, m)), flows(1)[0]
		if n := testing.AllocsPerRun(100, func() { table.Pick(&f) }); n != 0 {
			t.Errorf("%s: %v allocations", m, n)
		}
	}
}

// BenchmarkBalance compares the methods over many backends. The choice by least connections is to cost no more than 1.5
// of that by a Maglev table.
func BenchmarkBalance(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		for m := balance.Hash; m <= balance.Maglev; m++ {
			table, fs := tableOf(balanced(n, m)), flows(4096)
			b.Run(fmt.Sprintf("%s/%d", m, n), func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					table.Pick(&fs[i&4095])
				}
			})
		}
	}
}
