package announce

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
)

var addr = netip.MustParseAddr("192.0.2.1")

func names(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("node-%d", i))
	}
	return list
}

// Every node has its part of the addresses, and a node that goes moves its own addresses alone.
func TestRank(t *testing.T) {
	nodes := names(5)
	first := map[string]int{}
	a := netip.MustParseAddr("192.0.2.0")
	const addrs = 1000
	for range addrs {
		a = a.Next()
		ranked := Rank(a, nodes)
		first[ranked[0]]++
		for _, gone := range nodes {
			left := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == gone })
			want := slices.DeleteFunc(slices.Clone(ranked), func(n string) bool { return n == gone })
			if got := Rank(a, left); !slices.Equal(got, want) {
				t.Fatalf("%s without %s: %v, want %v", a, gone, got, want)
			}
		}
	}
	for _, n := range nodes {
		// The deviation of a fifth of 1,000 is 13, and that of a fifth of the orders 4.5 of 26: together 37.
		if first[n] < 90 || first[n] > 310 {
			t.Errorf("%s has %d of %d addresses", n, first[n], addrs)
		}
	}
}

// However many addresses and nodes there are, a node watches few others.
func TestWatchesFew(t *testing.T) {
	for _, n := range []int{4, 20, 30, 40, 60, 100, 300, 1000} {
		list := names(n)
		var links []Link
		a := netip.MustParseAddr("192.0.2.0")
		orders := map[uint16][]string{}
		for range 4000 {
			a = a.Next()
			o := orderOf(a)
			if orders[o] == nil {
				orders[o] = Rank(a, list)
			}
			links = append(links, Link{Addr: a, Ranked: orders[o]})
		}
		most, all, looked := 0, 0, 0
		for i := 0; i < n; i += 1 + n/100 {
			p := &Plan{Node: list[i], Links: links}
			w := len(p.Watched())
			most, all, looked = max(most, w), all+w, looked+1
		}
		t.Logf("of %d nodes one watches %d others on average, and %d at most", n, all/looked, most)
		if most > 32 || all > 18*looked {
			t.Errorf("one of %d nodes watches %d others", n, most)
		}
	}
}

func TestEligible(t *testing.T) {
	plain := []Node{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	leaving := []Node{{Name: "a"}, {Name: "b", Leaving: true}, {Name: "c", Excluded: true}}
	cluster := Needs{}
	local := func(nodes ...string) Needs { return Needs{Local: true, Nodes: nodes} }
	for _, tt := range []struct {
		name  string
		nodes []Node
		needs []Needs
		want  []string
	}{
		{"no Service", plain, nil, nil},
		{"everywhere", plain, []Needs{cluster}, []string{"a", "b", "c"}},
		{"with endpoints", plain, []Needs{local("c", "a", "x")}, []string{"a", "c"}},
		{"nowhere", plain, []Needs{local()}, nil},
		{"not on nodes that leave or are excluded", leaving, []Needs{cluster}, []string{"a"}},
		{"only on one that leaves", leaving, []Needs{local("b", "c")}, []string{"b"}},
		{"only on one that is excluded", leaving, []Needs{local("c")}, nil},
		{"all that leave", []Node{{Name: "a", Leaving: true}, {Name: "b", Leaving: true}}, []Needs{cluster}, []string{"a", "b"}},
		{"two Services", plain, []Needs{cluster, local("b")}, []string{"b"}},
		{"two Services that are apart", plain, []Needs{local("a"), local("b")}, []string{"a", "b"}},
	} {
		if got := Eligible(tt.nodes, tt.needs); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestTurns(t *testing.T) {
	now := time.Unix(1000, 0)
	answered := func(node string, ago time.Duration) Beat {
		return Beat{Node: node, Since: now.Add(-time.Hour), Answered: now.Add(-ago)}
	}
	for _, tt := range []struct {
		name   string
		self   string
		beats  []Beat
		down   []string
		unfit  bool
		want   string
		silent []string
	}{
		{"all answer", "c", []Beat{answered("a", 0), answered("b", 0)}, nil, false, "a", nil},
		{"just in time", "c", []Beat{answered("a", Patience-1), answered("b", 0)}, nil, false, "a", nil},
		{"the first is silent", "c", []Beat{answered("a", Patience), answered("b", 0)}, nil, false, "b", []string{"a"}},
		{"all before are silent", "c", []Beat{answered("a", Patience), answered("b", time.Minute)}, nil, false, "c", []string{"a", "b"}},
		{"the first is ours", "a", nil, nil, false, "a", nil},
		{"ours is not fit", "a", []Beat{answered("b", 0)}, nil, true, "b", []string{"a"}},
		{"an agent just started", "c", []Beat{{Node: "a", Since: now.Add(-Patience / 2)}, {Node: "b", Since: now}}, nil, false, "a", nil},
		{"it never answered", "c", []Beat{{Node: "a", Since: now.Add(-Patience)}, {Node: "b", Since: now}}, nil, false, "b", []string{"a"}},
		{"not asked yet", "c", []Beat{{Node: "a"}}, nil, false, "a", nil},
		{"who is not asked is believed", "d", nil, nil, false, "a", nil},
		{"but not when Kubernetes says it is dead", "d", nil, []string{"a"}, false, "b", []string{"a"}},
		{"answers go before Kubernetes", "c", []Beat{answered("a", 0)}, []string{"a"}, false, "a", nil},
		{"nobody", "c", []Beat{answered("a", time.Minute)}, []string{"b", "d"}, true, "", []string{"a", "b", "c", "d"}},
	} {
		p := &Plan{Node: tt.self, Down: tt.down, Links: []Link{{Addr: addr, Ranked: []string{"a", "b", "c", "d"}}}}
		expected := tt.name == "an agent just started" || tt.name == "not asked yet" || tt.name == "it never answered"
		want := []Turn{{Addr: addr, Announcer: tt.want, Mine: tt.want == tt.self, Expected: expected, Silent: tt.silent}}
		if got := p.Turns(Heard(tt.beats, now), Self{Fit: !tt.unfit}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, want)
		}
	}
}

// A node watches those before it, where it is near enough to the front.
func TestWatched(t *testing.T) {
	ranked := names(Close + 2)
	for i, self := range ranked {
		p := &Plan{Node: self, Links: []Link{{Addr: addr, Ranked: ranked}, {Addr: addr.Next(), Ranked: []string{"x"}}}}
		var want []string
		if i < Close {
			want = slices.Sorted(slices.Values(ranked[:i]))
		}
		if got := p.Watched(); !slices.Equal(got, want) {
			t.Errorf("%s watches %v, want %v", self, got, want)
		}
	}
}

// A node whose pods leave from an address watches all others that may be its gateway: when it cannot be that itself, it
// has to know who is.
func TestWatchedByUsers(t *testing.T) {
	ranked := names(Close)
	for _, self := range append(slices.Clone(ranked), "elsewhere") {
		p := &Plan{Node: self, Links: []Link{{Addr: addr, Egress: "e", Used: true, Ranked: ranked}}}
		if got, want := p.Watched(), slices.DeleteFunc(slices.Sorted(slices.Values(ranked)), func(n string) bool { return n == self }); !slices.Equal(got, want) {
			t.Errorf("%s watches %v, want %v", self, got, want)
		}
	}
}

// The fifth node is the gateway of an egress address when Kubernetes takes the four before it for dead, on every node
// alike. While one of them only lacks an announcer, nobody could say that the fifth has one.
func TestFifthGateway(t *testing.T) {
	now := time.Unix(1000, 0)
	ranked := names(6)
	var silent []Beat
	for _, n := range ranked[:Close] {
		silent = append(silent, Beat{Node: n, Answered: now.Add(-time.Hour)})
	}
	for self, beats := range map[string][]Beat{"elsewhere": silent, ranked[4]: nil, ranked[5]: silent} {
		for down, want := range map[int]string{Close: ranked[4], Close - 1: ""} {
			p := &Plan{Node: self, Down: ranked[:down], Links: []Link{{Addr: addr, Egress: "e", Ranked: ranked}}}
			if self == ranked[4] && want == "" {
				want = ranked[3] // which it does not ask
			}
			if got := p.Turns(Heard(beats, now), Self{Fit: true})[0].Announcer; got != want {
				t.Errorf("%s with %d dead: the gateway is %q, want %q", self, down, got, want)
			}
		}
	}
}

// Whatever two nodes have heard, both of them announce an address only if one has not heard of the other: nodes that
// hear the same say the same.
func TestOneAnnouncer(t *testing.T) {
	now := time.Unix(1000, 0)
	ranked := Rank(addr, names(4))
	for dead := range 1 << len(ranked) {
		var announcers []string
		for i, self := range ranked {
			if dead&(1<<i) != 0 {
				continue
			}
			var beats []Beat
			for j, n := range ranked[:i] {
				b := Beat{Node: n, Since: now.Add(-time.Hour), Answered: now}
				if dead&(1<<j) != 0 {
					b.Answered = now.Add(-Patience)
				}
				beats = append(beats, b)
			}
			p := &Plan{Node: self, Links: []Link{{Addr: addr, Ranked: ranked}}}
			if p.Turns(Heard(beats, now), Self{Fit: true})[0].Mine {
				announcers = append(announcers, self)
			}
		}
		if want := min(1, len(ranked)-popcount(dead)); len(announcers) != want {
			t.Errorf("with %04b dead, %v announce", dead, announcers)
		}
	}
}

func popcount(x int) (n int) {
	for ; x > 0; x >>= 1 {
		n += x & 1
	}
	return n
}
