package announce

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestRecord: a node rests when it has come back three times within a minute, and until it has answered for five
// seconds on end.
func TestRecord(t *testing.T) {
	const sec = time.Second
	for name, tt := range map[string]struct {
		spans   []time.Duration // it answers, does not, does, and so on
		excused bool
		rests   bool // at the end
	}{
		"it always answers":            {[]time.Duration{time.Hour}, false, false},
		"it never does":                {[]time.Duration{0, time.Hour}, false, false},
		"twice":                        {[]time.Duration{sec, sec, sec, sec, sec}, false, false},
		"three times":                  {[]time.Duration{sec, sec, sec, sec, sec, sec, sec}, false, true},
		"three times, and gone":        {[]time.Duration{sec, sec, sec, sec, sec, sec, sec, time.Hour}, false, true},
		"three times, and back":        {[]time.Duration{sec, sec, sec, sec, sec, sec, 4900 * time.Millisecond}, false, true},
		"three times, and long enough": {[]time.Duration{sec, sec, sec, sec, sec, sec, 5 * sec}, false, false},
		"but with a break":             {[]time.Duration{sec, sec, sec, sec, sec, sec, 3 * sec, sec / 10, 3 * sec}, false, true},
		"and once more":                {[]time.Duration{sec, sec, sec, sec, sec, sec, 8 * sec, sec, sec}, false, true},
		"in more than a minute":        {[]time.Duration{sec, sec, 30 * sec, sec, 30 * sec, sec, sec}, false, false},
		"it was this node's fault":     {[]time.Duration{sec, sec, sec, sec, sec, sec, sec}, true, false},
	} {
		var r Record
		now, excused := time.Unix(1000, 0), time.Time{}
		for i, span := range tt.spans {
			for end := now.Add(span); now.Before(end); now = now.Add(AskEvery) {
				if tt.excused {
					excused = now
				}
				r = r.Next(i%2 == 0, excused, now)
			}
		}
		if r = r.Next(len(tt.spans)%2 == 1, excused, now); r.Rests != tt.rests {
			t.Errorf("%s: it rests is %t", name, r.Rests)
		}
	}
}

// TestTurnsOfResting: an address is left to the next node by one that rests, and by nobody else.
func TestTurnsOfResting(t *testing.T) {
	const asks, rests = false, true
	for name, tt := range map[string]struct {
		self, egress string
		heard        Answers
		askers       map[string]bool
		want         string
		resting      int
	}{
		"nobody rests":                    {"b", "", Answers{"a": {Answers: true}}, nil, "a", 0},
		"the first rests":                 {"b", "", Answers{"a": {Answers: true, Rests: true}}, nil, "b", 1},
		"it is gone":                      {"b", "", Answers{"a": {Rests: true}}, nil, "b", 0},
		"the second rests, too":           {"b", "", Answers{"a": {Answers: true, Rests: true}}, map[string]bool{"c": rests}, "b", 1},
		"the first is gone, it rests":     {"b", "", Answers{"a": {}}, map[string]bool{"c": rests}, "c", 0},
		"the next has it rest":            {"a", "", nil, map[string]bool{"b": rests, "c": asks}, "b", 0},
		"a later one has it rest":         {"a", "", nil, map[string]bool{"b": asks, "c": rests}, "a", 0},
		"a later one, the next is gone":   {"a", "", nil, map[string]bool{"c": rests}, "b", 0},
		"the last has nobody after it":    {"c", "", Answers{"a": {}, "b": {}}, map[string]bool{"a": rests, "b": rests}, "c", 0},
		"an egress address does not rest": {"b", "e", Answers{"a": {Answers: true, Rests: true}}, nil, "a", 0},
		"nor does its own":                {"a", "e", nil, map[string]bool{"b": rests}, "a", 0},
	} {
		p := &Plan{Node: tt.self, Links: []Link{{Addr: addr, Egress: tt.egress, Ranked: []string{"a", "b", "c"}}}}
		got := p.Turns(tt.heard, Self{Fit: true, Askers: tt.askers})[0]
		if got.Announcer != tt.want || len(got.Resting) != tt.resting {
			t.Errorf("%s: %s announces, and %v rest; want %s", name, got.Announcer, got.Resting, tt.want)
		}
	}
}

// asking is a node of a world: an agent with its announcer.
type asking struct {
	plan     Plan
	records  Records
	began    time.Time
	answered map[string]time.Time
	passing  Answers
	asked    map[string]time.Time // when a node asked this one last
	told     map[string]bool      // whether it said that it passes this one over
	mine     []bool               // by address
}

// world is nodes that ask each other and announce addresses. Its nodes are on, or cut off from everybody, and each pair
// of them is connected or not.
type world struct {
	now   time.Time
	nodes map[string]*asking
	names []string
	off   map[string]bool
	cut   map[[2]string]bool
	rests bool // whether nodes that come and go rest
	last  []string
}

func newWorld(nodes, addrs int) *world {
	w := &world{now: time.Unix(1000, 0), nodes: map[string]*asking{}, names: names(nodes), off: map[string]bool{}, cut: map[[2]string]bool{}, rests: true}
	var links []Link
	for i := range addrs {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		links = append(links, Link{Addr: a, Ranked: Rank(a, w.names)})
	}
	for _, n := range w.names {
		w.nodes[n] = &asking{plan: Plan{Node: n, Links: links}, began: w.now, answered: map[string]time.Time{}, asked: map[string]time.Time{}, told: map[string]bool{}, mine: make([]bool, addrs)}
	}
	return w
}

func (w *world) reaches(a, b string) bool {
	return !w.off[a] && !w.off[b] && !w.cut[[2]string{a, b}] && !w.cut[[2]string{b, a}]
}

// step has every node ask once, and look.
func (w *world) step() {
	w.now = w.now.Add(beatEvery)
	for _, a := range w.names {
		for _, b := range w.nodes[a].plan.Watched() {
			if w.reaches(a, b) {
				w.nodes[a].answered[b] = w.now
				w.nodes[b].asked[a], w.nodes[b].told[a] = w.now, w.nodes[a].passing[b].Rests
			}
		}
	}
	for _, n := range w.names {
		w.nodes[n].look(w)
	}
}

func (n *asking) look(w *world) {
	var beats []Beat
	for _, other := range n.plan.Watched() {
		beats = append(beats, Beat{Node: other, Since: n.began, Answered: n.answered[other]})
	}
	heard := Heard(beats, w.now)
	n.records.Look(heard, func(other string) bool { return w.rests && n.plan.MayRest(other) }, w.now)
	n.passing = heard
	self := Self{Fit: true, Askers: map[string]bool{}}
	for by, at := range n.asked {
		if w.now.Sub(at) <= Patience {
			self.Askers[by] = n.told[by]
		}
	}
	for i, t := range n.plan.Turns(heard, self) {
		n.mine[i] = t.Mine
	}
}

// announcers returns the nodes that are on and announce an address.
func (w *world) announcers(addr int) (list []string) {
	for _, n := range w.names {
		if w.nodes[n].mine[addr] && !w.off[n] {
			list = append(list, n)
		}
	}
	return list
}

// run runs for a time, and returns how often somebody else began to announce the first address.
func (w *world) run(d time.Duration) (moves int) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.step()
		if now := w.announcers(0); len(now) == 1 && !slices.Equal(now, w.last) {
			moves, w.last = moves+1, now
		}
	}
	return moves
}

// TestFlapping: a node that is off for a second again and again moves its address five times and no more, until it has
// been on for five seconds. Without Records it moves it each time.
func TestFlapping(t *testing.T) {
	for _, nodes := range []int{2, 3, 5} {
		for _, rests := range []bool{true, false} {
			w := newWorld(nodes, 1)
			w.rests = rests
			ranked := w.nodes[w.names[0]].plan.Links[0].Ranked
			w.run(2 * time.Second)
			moves := 0
			for range 20 {
				w.off[ranked[0]] = true
				moves += w.run(time.Second)
				w.off[ranked[0]] = false
				moves += w.run(2 * time.Second)
			}
			if want := map[bool]int{true: 5, false: 40}[rests]; moves != want {
				t.Errorf("of %d nodes one that rests %t: %d moves, want %d", nodes, rests, moves, want)
			}
			if !rests {
				continue
			}
			if got := w.announcers(0); !slices.Equal(got, ranked[1:2]) {
				t.Errorf("of %d nodes %v announce, want the second", nodes, got)
			}
			// It has been on for two seconds.
			if w.run(restUntil - 3*time.Second); !slices.Equal(w.announcers(0), ranked[1:2]) {
				t.Errorf("of %d nodes %v announce too early", nodes, w.announcers(0))
			}
			if w.run(time.Second + 4*beatEvery); !slices.Equal(w.announcers(0), ranked[:1]) {
				t.Errorf("of %d nodes %v announce after the rest, want the first", nodes, w.announcers(0))
			}
		}
	}
}

// TestDeadAfterFlapping: whatever a node did before, when it dies, or the one that has its address meanwhile, another
// one has the address in less than a second.
func TestDeadAfterFlapping(t *testing.T) {
	for flaps := range 6 {
		for dies := range 2 {
			w := newWorld(3, 1)
			ranked := w.nodes[w.names[0]].plan.Links[0].Ranked
			w.run(2 * time.Second)
			for range flaps {
				w.off[ranked[0]] = true
				w.run(time.Second)
				w.off[ranked[0]] = false
				w.run(time.Second)
			}
			w.off[ranked[dies]] = true
			if w.run(Patience + 2*beatEvery); len(w.announcers(0)) != 1 {
				t.Errorf("after %d flaps, node %d dead: %v announce", flaps, dies, w.announcers(0))
			}
		}
	}
}

// TestSomebodyAnnounces: whichever nodes and pairs of them come and go, every address has an announcer when nothing has
// changed for as long as others are believed, and one alone when all have been connected for the time of a rest.
func TestSomebodyAnnounces(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 20 {
		w := newWorld(2+r.IntN(Close-1), 4)
		w.run(time.Second)
		for range 30 {
			for range 1 + r.IntN(3) {
				if r.IntN(3) == 0 {
					n := w.names[r.IntN(len(w.names))]
					w.off[n] = !w.off[n]
				} else {
					pair := [2]string{w.names[r.IntN(len(w.names))], w.names[r.IntN(len(w.names))]}
					w.cut[pair] = !w.cut[pair]
				}
			}
			w.run(time.Duration(r.IntN(3000)) * time.Millisecond)
			if len(w.off) == len(w.names) {
				clear(w.off)
			}
		}
		w.run(Patience + 4*beatEvery)
		for a := range 4 {
			on := slices.ContainsFunc(w.names, func(n string) bool { return !w.off[n] })
			if on && len(w.announcers(a)) == 0 {
				t.Fatalf("round %d: nobody announces %d: off %v, cut %v", round, a, w.off, w.cut)
			}
		}
		clear(w.cut)
		clear(w.off)
		w.run(restUntil + Patience + 4*beatEvery)
		for a := range 4 {
			if got := w.announcers(a); len(got) != 1 || got[0] != w.nodes[w.names[0]].plan.Links[a].Ranked[0] {
				t.Fatalf("round %d: %v announce %d after all were connected", round, got, a)
			}
		}
	}
}

// TestNobodyIsBlamed: a node that stands still, or is cut off from most others, has none of them rest.
func TestNobodyIsBlamed(t *testing.T) {
	heard := func(answer bool, n int) Answers {
		all := Answers{}
		for i := range n {
			all[fmt.Sprint(i)] = Answer{Answers: answer || i >= 3}
		}
		return all
	}
	for name, tt := range map[string]struct {
		nodes int
		late  time.Duration
		rest  bool
	}{
		"one of one":         {1, 0, true},
		"one of one, late":   {1, lateLook, false},
		"three of three":     {3, 0, false},
		"three of four":      {4, 0, false},
		"three of six":       {6, 0, true},
		"three of six, late": {6, lateLook, false},
	} {
		var r Records
		now := time.Unix(1000, 0)
		last := Answers{}
		look := func(answer bool) {
			now = now.Add(AskEvery)
			last = heard(answer, tt.nodes)
			r.Look(last, func(string) bool { return true }, now)
		}
		for range 4 {
			for range 20 {
				look(true)
			}
			now = now.Add(tt.late)
			for range 20 {
				look(false)
			}
			now = now.Add(tt.late)
		}
		if look(true); last["0"].Rests != tt.rest {
			t.Errorf("%s: it rests is %t", name, last["0"].Rests)
		}
	}
}
