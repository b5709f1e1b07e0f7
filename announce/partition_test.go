package announce

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// beatEvery is how often nodes ask each other (overlay.BeatEvery).
const beatEvery = 50 * time.Millisecond

// network is nodes that ask each other. cut has the pairs that do not hear each other.
type network struct {
	nodes    []string
	cut      map[[2]string]bool
	answered map[[2]string]time.Time
	began    time.Time
}

// beat has everybody ask everybody once.
func (n *network) beat(now time.Time) {
	for _, a := range n.nodes {
		for _, b := range n.nodes {
			if !n.cut[[2]string{a, b}] && !n.cut[[2]string{b, a}] {
				n.answered[[2]string{a, b}] = now
			}
		}
	}
}

// announcers returns who takes the address for his.
func (n *network) announcers(now time.Time) (list []string) {
	ranked := Rank(addr, n.nodes)
	for _, self := range n.nodes {
		p := &Plan{Node: self, Links: []Link{{Addr: addr, Ranked: ranked}}}
		var beats []Beat
		for _, other := range p.Watched() {
			beats = append(beats, Beat{Node: other, Since: n.began, Answered: n.answered[[2]string{self, other}]})
		}
		if p.Turns(Heard(beats, now), Self{Fit: true})[0].Mine {
			list = append(list, self)
		}
	}
	return list
}

// After a network was parted, in whatever way and for however long, one node announces an address as soon as every node
// has asked the others once again, and it is the first. While it is parted each node that hears no other before it
// announces, so that clients of every part have one.
func TestPartitionHeals(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		start := time.Unix(1000, 0)
		n := &network{nodes: names(2 + r.IntN(Close-1)), cut: map[[2]string]bool{}, answered: map[[2]string]time.Time{}, began: start}
		ranked := Rank(addr, n.nodes)
		now := start
		run := func(d time.Duration) {
			for end := now.Add(d); now.Before(end); now = now.Add(beatEvery) {
				n.beat(now)
			}
		}
		run(time.Second)
		for i, a := range n.nodes {
			for _, b := range n.nodes[:i] {
				n.cut[[2]string{a, b}] = r.IntN(2) == 0
			}
		}
		parted := time.Duration(r.IntN(3000)) * time.Millisecond
		run(parted)
		if parted > Patience+beatEvery {
			for i, node := range ranked {
				alone := !slices.ContainsFunc(ranked[:i], func(before string) bool { return !n.cut[[2]string{node, before}] && !n.cut[[2]string{before, node}] })
				if announces := slices.Contains(n.announcers(now), node); announces != alone {
					t.Fatalf("parted for %s, %v cut: %s announces is %t", parted, n.cut, node, announces)
				}
			}
		}
		clear(n.cut)
		n.beat(now) // one interval
		if got := n.announcers(now); len(got) != 1 || got[0] != ranked[0] {
			t.Fatalf("an interval after it was parted for %s: %v announce, want %s alone", parted, got, ranked[0])
		}
	}
}
