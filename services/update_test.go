package services

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"tapestry.dev/tapestry/roll"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/affinity"
)

// sorted returns a list sorted by name.
func sorted(l roll.List[*Service]) roll.List[*Service] {
	return roll.From(slices.SortedFunc(slices.Values(l.Slice()), compareServices))
}

// nextConfig returns a copy of c with one random change.
func nextConfig(r *rand.Rand, c Config) Config {
	other := randomConfig(r)
	switch i := r.IntN(max(1, c.Services.Len())); r.IntN(8) {
	case 0:
		c.NodeAddrs, c.OwnAddrs = other.NodeAddrs, other.OwnAddrs
	case 1:
		// A name may be there twice.
		c.Services = roll.From(slices.Insert(c.Services.Slice(), i, other.Services.Slice()...))
	case 2:
		c.Services = roll.From(c.Services.Slice()[c.Services.Len()-i:])
	case 3:
		c.Pods = []Pod{{ID: fmt.Sprint(r.IntN(20)), Addrs: addresstest.Addrs("10.0.0.3", "10.0.0.4")}}
	case 5:
		c.HostPorts = []HostPort{hostPort(fmt.Sprintf("0.0.0.0:%d 10.0.0.3:80", 52+r.IntN(4))), hostPort("127.0.0.1:53 10.0.0.4:80")}
	case 4:
		c.Node = string(rune('a' + r.IntN(2)))
	default:
		if c.Services.Len() > 0 && other.Services.Len() > 0 {
			s := *c.Services.At(i)
			s.Endpoints = other.Services.At(0).Endpoints
			c.Services = c.Services.With(roll.Edit[*Service]{At: i, To: &s})
		}
	}
	return c
}

// An updated Table is like a new one, whatever changes came before.
func FuzzUpdateTwin(f *testing.F) {
	for i := range uint64(200) {
		f.Add(i, i*5)
	}
	f.Fuzz(func(t *testing.T, a, b uint64) {
		r := rand.New(rand.NewPCG(a, b))
		c := randomConfig(r)
		table, _ := NewTable(c)
		ids := map[uint64]bool{}
		for range 12 {
			c = nextConfig(r, c)
			got, gotProblems := table.Update(c)
			want, wantProblems := NewTable(c)
			if diff := cmp.Diff(wantProblems, gotProblems); diff != "" {
				t.Fatalf("problems (-new +updated):\n%s", diff)
			}
			if diff := cmp.Diff(want.Rows(), got.Rows()); diff != "" {
				t.Fatalf("rows (-new +updated):\n%s", diff)
			}
			for id := range want.hosts.ids {
				ids[id] = true
			}
			for _, u := range want.units.All() {
				for _, s := range u.states {
					ids[s.id] = true
				}
			}
			for id := range ids { // all ids that any Table had
				if got, want := got.Backend(id, packet.Addr{}), want.Backend(id, packet.Addr{}); got != want {
					t.Fatalf("backend %x is %v, want %v", id, got, want)
				}
			}
			for _, dst := range addresstest.Addrs("10.96.0.1", "10.96.0.2", "192.0.2.1", "198.51.100.1", "fd96::1", "2001:db8::1") {
				tu := packet.Tuple{Src: packet.AddrFrom(netip.MustParseAddr("10.0.0.1")), SrcPort: uint16(r.Uint32()),
					Dst: packet.AddrFrom(dst), DstPort: uint16(52 + r.IntN(4)), Proto: packet.TCP}
				if got.PickOnHost(&tu) != want.PickOnHost(&tu) {
					t.Fatalf("on the host %v: %+v, want %+v", tu, got.PickOnHost(&tu), want.PickOnHost(&tu))
				}
				if got.Pick(&tu) != want.Pick(&tu) {
					t.Fatalf("%v: %+v, want %+v", tu, got.Pick(&tu), want.Pick(&tu))
				}
			}
			table = got
			table.Affinity = affinity.New(nil) // a new Table remembers nobody
		}
	})
}

// A new endpoint costs only its Service: everything else is reused from the previous Table.
func TestUpdateShares(t *testing.T) {
	c := cluster(100, 3)
	c.Services = sorted(c.Services)
	before, _ := NewTable(c)
	if again, _ := before.Update(c); again != before {
		t.Error("a Table that says the same was made anew")
	}
	next := c
	next.Services = c.Services
	next.Services = next.Services.With(roll.Edit[*Service]{At: 50, To: fewer(next.Services.At(50))})
	after, _ := before.Update(next)
	if &after.fronts[0] != &before.fronts[0] || &after.index[0] != &before.index[0] {
		t.Error("the frontends were made anew")
	}
	shared := 0
	for i := range after.units.All() {
		if after.units.At(i) == before.units.At(i) {
			shared++
		}
	}
	if shared != 99 {
		t.Errorf("%d units of 100 are shared, want 99", shared)
	}
}

// fewer returns s without its first endpoint.
func fewer(s *Service) *Service {
	out := *s
	out.Endpoints = s.Endpoints[1:]
	return &out
}

func BenchmarkUpdate(b *testing.B) {
	c := cluster(10_000, 10)
	c.Services = sorted(c.Services)
	table, _ := NewTable(c)
	for _, bb := range []struct {
		name string
		edit func(c *Config)
	}{
		{"nothing", func(*Config) {}},
		{"endpoint", func(c *Config) {
			c.Services = c.Services.With(roll.Edit[*Service]{At: 5000, To: fewer(c.Services.At(5000))})
		}},
		{"service", func(c *Config) { c.Services = roll.From(slices.Delete(c.Services.Slice(), 5000, 5001)) }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				next := c
				bb.edit(&next)
				table.Update(next)
			}
		})
	}
}
