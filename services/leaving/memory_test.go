package leaving

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

func endpoint(addr byte, service string, is Standing) Endpoint {
	return Endpoint{
		Key:      Key{Endpoint: packet.Endpoint{Addr: packet.AddrFrom(netip.AddrFrom4([4]byte{10, 0, 0, addr})), Port: 80}, Proto: packet.TCP},
		Port:     Port{Namespace: "d", Name: service, Proto: packet.TCP},
		Standing: is,
	}
}

func TestLeaving(t *testing.T) {
	now := time.Hour
	m := New(func() time.Duration { return now })
	names := func(addr byte) (list []string) {
		for _, p := range m.Leaving(endpoint(addr, "", Stays).Key) {
			list = append(list, p.Name)
		}
		slices.Sort(list)
		return list
	}
	want := func(when string, list ...string) {
		t.Helper()
		if got := names(1); !slices.Equal(got, list) {
			t.Errorf("%s: leaves %v, want %v", when, got, list)
		}
	}
	want("unknown")
	a, b := endpoint(1, "a", Stays), endpoint(1, "b", Stays)
	m.Change(nil, []Endpoint{a, b})
	want("ready")
	leaves := a
	leaves.Standing = Leaves
	m.Change([]Endpoint{a}, []Endpoint{leaves})
	want("one Service still has it")
	m.Change([]Endpoint{b}, nil)
	want("it has left one and terminates in the other", "a", "b")
	m.Change([]Endpoint{leaves}, nil)
	want("it has left both", "a", "b")
	m.Change(nil, []Endpoint{a})
	want("it has come back")
	m.Change([]Endpoint{a}, nil)
	now += linger - 1
	m.Change(nil, []Endpoint{endpoint(2, "c", Stays)})
	want("after a minute less a bit", "a", "b")
	now++
	m.Change(nil, []Endpoint{endpoint(3, "c", Stays)})
	if want("after a minute"); m.Len() != 2 {
		t.Errorf("%d endpoints are remembered, want 2", m.Len())
	}
	// One pod terminates, and another has its address already.
	m.Change(nil, []Endpoint{endpoint(1, "a", Stays), endpoint(1, "a", Leaves)})
	want("another pod has the address")
}

// Whoever makes Services that come and go cannot fill the memory.
func TestLeavingIsBounded(t *testing.T) {
	m := New(func() time.Duration { return time.Hour })
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var list []Endpoint
		for range 10 {
			e := endpoint(byte(r.IntN(256)), "s", Stays)
			e.Endpoint.Port = uint16(r.IntN(1 << 16))
			list = append(list, e)
		}
		m.Change(nil, list)
		m.Change(list, nil)
	}
	if m.Len() > most || len(m.left) > most {
		t.Errorf("%d endpoints are remembered, want %d at most", m.Len(), most)
	}
}

// What has left is forgotten in time, also when nothing changes any more. What terminates is not.
func TestLeavingEnds(t *testing.T) {
	now := time.Hour
	m := New(func() time.Duration { return now })
	a, b, c := endpoint(1, "a", Stays), endpoint(1, "b", Leaves), endpoint(2, "c", Stays)
	m.Change(nil, []Endpoint{a, b, c})
	m.Change([]Endpoint{a, c}, nil)
	check := func(e Endpoint, want ...string) {
		t.Helper()
		var got []string
		for _, p := range m.Leaving(e.Key) {
			got = append(got, p.Name)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("after %v: leaves %v, want %v", now-time.Hour, got, want)
		}
	}
	now += linger - 1
	check(a, "a", "b")
	check(c, "c")
	now++
	check(a, "b")
	check(c)
	if n := testing.AllocsPerRun(10, func() { m.Leaving(a.Key) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whoever makes Services that come and go makes nobody else's be forgotten.
func TestLeavingIsShared(t *testing.T) {
	m := New(func() time.Duration { return time.Hour })
	quiet := endpoint(1, "s", Stays)
	quiet.Namespace = "quiet"
	m.Change(nil, []Endpoint{quiet})
	m.Change([]Endpoint{quiet}, nil)
	var list []Endpoint
	for i := range 2 * most {
		e := endpoint(2, "s", Stays)
		e.Endpoint.Port = uint16(1 + i)
		list = append(list, e)
	}
	m.Change(nil, list)
	m.Change(list, nil)
	if len(m.Leaving(quiet.Key)) != 1 {
		t.Error("an endpoint of another namespace is forgotten")
	}
	if n := len(m.left); n != most || m.Len() != most {
		t.Errorf("%d have left, and %d are remembered, want %d", n, m.Len(), most)
	}
	if len(m.Leaving(list[0].Key)) != 0 || len(m.Leaving(list[len(list)-1].Key)) != 1 {
		t.Error("not those that left first are forgotten")
	}
}

// surplus is held against taking one after the other from whoever has the most.
func TestSurplus(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		var left []departure
		has := map[string]int{}
		for i := range 1 + r.IntN(6) {
			for range r.IntN(3 * most / 2) {
				d := departure{until: time.Duration(r.IntN(8))}
				d.Namespace = string(rune('a' + i))
				left = append(left, d)
				if d.until > 0 {
					has[d.Namespace]++
				}
			}
		}
		sum := 0
		for _, n := range has {
			sum += n
		}
		least := sum
		for ; sum > most; sum-- {
			first := ""
			for name, n := range has {
				if n > has[first] {
					first = name
				}
			}
			has[first]--
			least = has[first]
		}
		counts := map[string]int{}
		for _, d := range left {
			if d.until > 0 {
				counts[d.Namespace]++
			}
		}
		over, kept := surplus(left, 0), 0
		for name, n := range counts {
			n -= over[name]
			kept += n
			if n < has[name]-1 || n > has[name] && n > least+1 {
				t.Errorf("%s keeps %d, want %d", name, n, has[name])
			}
		}
		if kept > most || sum == most && kept <= most-len(counts) {
			t.Errorf("%d are kept, want %d", kept, most)
		}
	}
}
