package services

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/roll"
)

// randomPart returns a part of up to n endpoints out of few pods, so that other parts have the same. mostly is how they
// are.
func randomPart(r *rand.Rand, n int, mostly Endpoint) *Part {
	lists := [][]EndpointPort{{{"web", packet.TCP, 8080}, {"dns", packet.UDP, 53}}, {{"web", packet.TCP, 9090}}, {{"dns", packet.UDP, 53}}, nil}
	p := new(Part)
	for range r.IntN(n + 1) {
		k := r.IntN(6 * n)
		e := mostly
		e.Addr, e.ID = netip.AddrFrom4([4]byte{10, 1, byte(k >> 8), byte(k)}), fmt.Sprint("uid-", k)
		if k%5 == 0 {
			e.Addr = netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(k >> 8), 15: byte(k)})
		}
		if r.IntN(20) == 0 {
			e.Ready, e.Serving, e.Terminating = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
			e.ForNode, e.ForZone = Hint(r.IntN(3)), Hint(r.IntN(3))
		}
		e.Node = []string{"a", "b", "c", ""}[r.IntN(4)]
		e.Ports = lists[[]int{0, 0, 0, 0, 0, 1, 2, 3}[r.IntN(8)]]
		p.Endpoints = append(p.Endpoints, e)
	}
	return p
}

// randomParted returns a Service with endpoints in parts.
func randomParted(r *rand.Rand) Service {
	return Service{
		Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1", "fd96::1"), ExternalIPs: addresstest.Addrs("198.51.100.1"),
		Ports:         []Port{{Name: "web", Protocol: packet.TCP, Port: 80, NodePort: 30080}, {Name: "dns", Protocol: packet.UDP, Port: 53}, {Name: "none", Protocol: packet.TCP, Port: 7}},
		InternalLocal: r.IntN(3) == 0, ExternalLocal: r.IntN(2) == 0, PublishNotReady: r.IntN(6) == 0,
		Balance: []balance.Method{balance.Hash, balance.Hash, balance.Maglev, balance.RoundRobin}[r.IntN(4)],
	}
}

// listedConfig is a Config with endpoints of parts in lists.
func listedConfig(c Config) Config {
	var list []*Service
	for _, s := range c.Services.All() {
		flat := *s
		flat.Endpoints, flat.Parts = s.listed(), nil
		list = append(list, &flat)
	}
	c.Services = roll.From(list)
	return c
}

// TestPartsTwin: a Table of Services whose endpoints are in parts, which change one after another, is like a new Table
// of the same Services with lists.
func TestPartsTwin(t *testing.T) {
	trees := 0
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 4))
		c := testConfig()
		base := randomParted(r)
		mostly := []Endpoint{
			{Ready: true, Serving: true}, {Ready: true, Serving: true, ForNode: Here}, {Ready: true, Serving: true, ForZone: Here},
			{Ready: true, Serving: true, ForZone: Elsewhere}, {Serving: true, Terminating: true}, {},
		}
		size := []int{3, 60, 1000}[seed%3]
		parts := make([]*Part, 1+r.IntN(8))
		for i := range parts {
			parts[i] = randomPart(r, size, mostly[0])
		}
		var table *Table
		for range 14 {
			switch is := mostly[max(0, r.IntN(12)-6)]; r.IntN(5) {
			case 0:
				parts = append(slices.Clone(parts), randomPart(r, size, is))
			case 1:
				parts = slices.Clone(parts[min(1, len(parts)):])
			case 2:
				base.InternalLocal = !base.InternalLocal
			case 3: // all change
				parts = slices.Clone(parts)
				for i := range parts {
					parts[i] = randomPart(r, size, is)
				}
			default:
				parts = slices.Clone(parts)
				if len(parts) > 0 {
					parts[r.IntN(len(parts))] = randomPart(r, size, is)
				}
			}
			s := base
			s.Parts = parts
			services := c.Services.Slice()
			c.Services = roll.From(append(slices.DeleteFunc(services, func(o *Service) bool { return o.Name == s.Name }), &s))
			var problems []Problem
			table, problems = table.Update(c)
			want, told := NewTable(listedConfig(c))
			if !slices.Equal(problems, told) {
				t.Fatalf("seed %d: problems %v, want %v", seed, problems, told)
			}
			comparePicks(t, table, want)
			if u := table.units.At(table.units.Len() - 1); u.sets[0].tree != nil {
				trees++
			}
		}
	}
	if trees < 8 {
		t.Errorf("%d Tables had a tree: too few were large", trees)
	}
}

// comparePicks compares two Tables by their answers about the Service d/s, which is the last of both.
func comparePicks(t *testing.T, got, want *Table) {
	t.Helper()
	u, v := got.units.At(got.units.Len()-1), want.units.At(want.units.Len()-1)
	for i := range v.sets {
		a, b := &u.sets[i], &v.sets[i]
		if a.size() != b.size() || a.empty != b.empty || a.ending != b.ending || (a.tree == nil) != (b.tree == nil) {
			t.Fatalf("set %d: %d backends, empty %v, ending %v; want %d, %v, %v", i, a.size(), a.empty, a.ending, b.size(), b.empty, b.ending)
		}
		for j := range a.size() {
			if *a.at(j) != *b.at(j) {
				t.Fatalf("set %d: backend %d is %v, want %v", i, j, *a.at(j), *b.at(j))
			}
		}
		for h := uint64(0); h < 50 && a.size() > 0; h++ {
			if x, y := a.winner(finish(h)), b.winner(finish(h)); *x != *y {
				t.Fatalf("set %d: hash %d leads to %v, want %v", i, h, *x, *y)
			}
		}
	}
	for _, s := range v.states {
		if a, b := got.states.of(s.id), want.states.of(s.id); a != b {
			t.Fatalf("backend %x is %v, want %v", s.id, a, b)
		}
	}
	if got.states.Len() != want.states.Len() || got.here.Len() != want.here.Len() || got.anywhere.Len() != want.anywhere.Len() {
		t.Fatalf("%d states and %d, %d places; want %d and %d, %d", got.states.Len(), got.here.Len(), got.anywhere.Len(), want.states.Len(), want.here.Len(), want.anywhere.Len())
	}
	for _, k := range slices.Concat(v.here, v.anywhere) {
		if to := (packet.Endpoint{Addr: k.addr, Port: k.port}); !got.IsEndpoint(to, k.proto) {
			t.Fatalf("%v is no endpoint", k)
		}
	}
	if !reflect.DeepEqual(got.Rows(), want.Rows()) || !slices.Equal(got.HealthChecks(), want.HealthChecks()) || !slices.Equal(got.NodePorts(), want.NodePorts()) {
		t.Fatal("rows, health checks or node ports differ")
	}
	for _, port := range []string{"web", "80", "none"} {
		p := ServicePort{"d", "s", port}
		if !slices.Equal(got.Endpoints(p), want.Endpoints(p)) {
			t.Fatalf("port %s has other endpoints", port)
		}
	}
}

// hundredThousand returns a func that changes one endpoint of a Service with n parts of 1,000, and back, in turns.
func hundredThousand(n int) func() {
	c := cluster(10, 3)
	s := manyService(n * 1000)
	for i := range n {
		s.Parts = append(s.Parts, &Part{s.Endpoints[i*1000 : (i+1)*1000]})
	}
	s.Endpoints = nil
	less := s
	less.Parts = slices.Clone(s.Parts)
	less.Parts[n/2] = &Part{s.Parts[n/2].Endpoints[1:]}
	c.Services = sorted(roll.From(append(c.Services.Slice(), &s)))
	at, _ := c.Services.Search(func(o *Service) int { return compareServices(o, &s) })
	table, _ := NewTable(c)
	next, forms, turn := c, [2]*Service{&less, &s}, 0
	return func() {
		next.Services = next.Services.With(roll.Edit[*Service]{At: at, To: forms[turn%2]})
		turn++
		table, _ = table.Update(next)
	}
}

// One endpoint's change in a Service of 100,000 endpoints allocates what it does in one of 2,000, but for what there is
// once for each part.
func TestEndpointAmongHundredThousand(t *testing.T) {
	few, many := bytesOf(hundredThousand(2)), bytesOf(hundredThousand(100))
	if t.Logf("%d bytes among 2,000, %d among 100,000", few, many); many > few+100_000 {
		t.Errorf("%d bytes among 100,000 endpoints, %d among 2,000", many, few)
	}
}

// BenchmarkEndpointInLarge measures the same.
func BenchmarkEndpointInLarge(b *testing.B) {
	for _, n := range []int{2, 10, 100} {
		b.Run(fmt.Sprint(n*1000), func(b *testing.B) {
			change := hundredThousand(n)
			b.ReportAllocs()
			for b.Loop() {
				change()
			}
		})
	}
}

// parted returns the Config of a Service with session affinity, each list of whose endpoints is a part.
func parted(lists ...[]Endpoint) Config {
	c := scaled(0)
	for _, list := range lists {
		c.Services.At(0).Parts = append(c.Services.At(0).Parts, &Part{list})
	}
	return c
}

// An endpoint that goes from one part to another, and is in both meanwhile, is there all the time: clients keep their
// sessions with it, and nothing that arrives for it is led elsewhere.
func TestEndpointMovesAmongParts(t *testing.T) {
	first, second, moves := eps("10.0.0.1 a rs", "10.0.0.2 a rs"), eps("10.0.0.3 a rs", "10.0.0.4 a rs"), ep("10.0.0.5 a rs")
	both := func(list []Endpoint) []Endpoint { return append(slices.Clone(list), moves) }
	config := parted(both(first), second)
	table, _ := NewTable(config)
	const clients = 200
	pick := func(i int) packet.Choice { return table.Pick(tuple(fmt.Sprintf("tcp 10.0.9.%d:1000 10.96.0.1:80", i))) }
	at := 0
	for i := range clients {
		if pick(i).To.Addr == packet.AddrFrom(moves.Addr) {
			at++
		}
	}
	steered := func() bool { return table.Steer(tuple("tcp 10.0.9.9:1000 10.0.0.5:8080"), false).Kind == packet.Picked }
	change := func(parts ...*Part) {
		s := *config.Services.At(0)
		s.Parts = parts
		config.Services = roll.Of(&s)
		table, _ = table.Update(config)
	}
	with, without := []*Part{config.Services.At(0).Parts[0], {both(second)}}, []*Part{{first}, {second}}
	for _, step := range []struct {
		name  string
		parts []*Part
	}{{"it is in both", with}, {"it is in the second", []*Part{without[0], with[1]}}, {"it is in both again", with}} {
		change(step.parts...)
		if n := table.Affinity.Stats().Sessions; n != clients {
			t.Errorf("%s: %d of %d sessions are left", step.name, n, clients)
		}
		if steered() {
			t.Errorf("%s: connections to it are led elsewhere", step.name)
		}
	}
	change(without...)
	if n := table.Affinity.Stats().Sessions; at == 0 || n != clients-at {
		t.Errorf("it is gone: %d sessions are left, want %d", n, clients-at)
	}
	if !steered() {
		t.Error("it is gone: connections to it are led nowhere else")
	}
}
