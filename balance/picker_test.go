package balance

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// world is a made-up cluster: servers that take their time, and a clock that the test moves.
type world struct {
	Source
	now     time.Duration
	random  *rand.Rand
	servers []*server
	ends    ends
}

// server answers after a while, and ends the connection a moment later. It refuses everything if it refuses.
type server struct {
	load    Load
	takes   time.Duration
	refuses bool
	chosen  int
}

func newWorld(takes ...time.Duration) *world {
	w := &world{now: time.Hour, random: rand.New(rand.NewPCG(1, 2))}
	w.Source = Source{Clock: func() time.Duration { return w.now }, Rand: func() uint64 { return w.random.Uint64() }}
	for _, d := range takes {
		w.servers = append(w.servers, &server{takes: d})
	}
	return w
}

func (w *world) picker(m Method) *Picker {
	var loads []*Load
	for _, s := range w.servers {
		loads = append(loads, &s.load)
	}
	return w.New(m, len(w.servers), loads)
}

// run opens n connections, one after every pause on the average, and returns how many each server got.
func (w *world) run(p *Picker, n int, pause time.Duration) []int {
	for _, s := range w.servers {
		s.chosen = 0
	}
	for range n {
		w.pass(time.Duration(w.random.ExpFloat64() * float64(pause)))
		s := w.servers[p.Pick()]
		s.chosen++
		s.load.Begin()
		began := w.now
		if s.refuses {
			s.load.Refused(w.now)
			s.load.End(false)
			continue
		}
		heap.Push(&w.ends, end{w.now + s.takes, func() {
			s.load.Answered(w.now-began, w.now)
			s.load.End(true)
		}})
	}
	var got []int
	for _, s := range w.servers {
		got = append(got, s.chosen)
	}
	return got
}

// pass lets time pass.
func (w *world) pass(d time.Duration) {
	until := w.now + d
	for len(w.ends) > 0 && w.ends[0].at <= until {
		e := heap.Pop(&w.ends).(end)
		w.now = e.at
		e.do()
	}
	w.now = until
}

type end struct {
	at time.Duration
	do func()
}

type ends []end

func (e ends) Len() int           { return len(e) }
func (e ends) Less(i, j int) bool { return e[i].at < e[j].at }
func (e ends) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *ends) Push(x any)        { *e = append(*e, x.(end)) }
func (e *ends) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// repeated returns n times d.
func repeated(n int, d time.Duration) []time.Duration { return slices.Repeat([]time.Duration{d}, n) }

// mean returns the mean of a list.
func mean(list []int) float64 {
	sum := 0
	for _, n := range list {
		sum += n
	}
	return float64(sum) / float64(len(list))
}

// Ten servers of which two are ten times slower: who gets how much. share is what a slow one gets of a quick one's
// part.
func TestShareOfSlowServers(t *testing.T) {
	for m, share := range map[Method][2]float64{
		Random:           {0.95, 1.05}, // as many as anybody
		RoundRobin:       {0.999, 1.001},
		LeastConnections: {0.05, 0.35}, // as many at a time as the others, that is, a tenth; a bit more, since two are compared
		EWMA:             {0.005, 0.2}, // where a quick one is among the two, that one; a slow one when two slow ones meet
	} {
		w := newWorld(append(repeated(8, 10*time.Millisecond), repeated(2, 100*time.Millisecond)...)...)
		got := w.run(w.picker(m), 50_000, 200*time.Microsecond)
		ratio := mean(got[8:]) / mean(got[:8])
		if t.Logf("%-18s %v: a slow one gets %.3f of a quick one's part", m, got, ratio); ratio < share[0] || ratio > share[1] {
			t.Errorf("%s: a slow server got %.3f of a quick one's part, want %v", m, ratio, share)
		}
		quick := slices.Sorted(slices.Values(got[:8]))
		if most := float64(quick[7]) / float64(quick[0]); most > 1.1 {
			t.Errorf("%s: equal servers got %v", m, quick)
		}
	}
}

// A server that refuses everything is quick to do so, and has no connections. It must not attract any.
func TestRefusingServerGetsLittle(t *testing.T) {
	w := newWorld(repeated(10, 20*time.Millisecond)...)
	w.servers[3].refuses = true
	got := w.run(w.picker(EWMA), 20_000, time.Millisecond)
	if t.Log(got); float64(got[3]) > mean(got)/10 {
		t.Errorf("it got %d of 20,000: %v", got[3], got)
	}
}

// A server that stops answering gets few connections before the first of them is given up.
func TestSilentServerGetsLittle(t *testing.T) {
	w := newWorld(repeated(10, 20*time.Millisecond)...)
	p := w.picker(EWMA)
	w.run(p, 5_000, time.Millisecond)
	w.servers[3].takes = time.Hour
	got := w.run(p, 5_000, time.Millisecond)
	if t.Log(got); got[3] > 50 {
		t.Errorf("it got %d of 5,000: %v", got[3], got)
	}
}

// A slow server that has become quick gets its part again: what was known of it is forgotten.
func TestSlowServerReturns(t *testing.T) {
	w := newWorld(append(repeated(9, 10*time.Millisecond), time.Second)...)
	p := w.picker(EWMA)
	w.run(p, 5_000, time.Millisecond)
	w.servers[9].takes = 10 * time.Millisecond
	w.run(p, 120_000, time.Millisecond)
	got := w.run(p, 20_000, time.Millisecond)
	if part := float64(got[9]) / mean(got[:9]); part < 0.8 || part > 1.2 {
		t.Errorf("after two minutes it gets %.2f of the others' part: %v", part, got)
	}
}

// After a rollout of one server of ten, the new one gets a part that grows, and not everything.
func TestNewServerStartsSlowly(t *testing.T) {
	for _, m := range []Method{LeastConnections, EWMA} {
		w := newWorld(repeated(10, 50*time.Millisecond)...)
		p := w.picker(m)
		w.run(p, 20_000, 500*time.Microsecond)
		w.servers[0] = &server{takes: 50 * time.Millisecond}
		w.servers[0].load.Come(w.now)
		p = w.picker(m)
		var parts []float64
		for range 4 { // of ten seconds each
			got := w.run(p, 20_000, 500*time.Microsecond)
			parts = append(parts, float64(got[0])/mean(got[1:]))
		}
		t.Logf("%s: its part in the first four times ten seconds: %.2f", m, parts)
		if !slices.IsSorted(parts) || parts[0] > 0.4 || math.Abs(parts[3]-1) > 0.15 {
			t.Errorf("%s: its part was %.2f, want one that grows to 1", m, parts)
		}
	}
}

// When all servers are new, none gets more than the others.
func TestAllNew(t *testing.T) {
	for _, m := range []Method{Random, RoundRobin, LeastConnections, EWMA} {
		w := newWorld(repeated(10, 50*time.Millisecond)...)
		for _, s := range w.servers {
			s.load.Come(w.now)
		}
		got := w.run(w.picker(m), 20_000, time.Millisecond)
		if sorted := slices.Sorted(slices.Values(got)); float64(sorted[9]) > 1.15*float64(sorted[0]) {
			t.Errorf("%s: %v", m, got)
		}
	}
}

// Pickers that are made anew again and again, as when endpoints flap, begin anywhere.
func TestRoundRobinOfNewPickers(t *testing.T) {
	w := newWorld(repeated(4, 0)...)
	var got [4]int
	for range 4_000 {
		got[w.picker(RoundRobin).Pick()]++
	}
	for i, n := range got {
		if n < 900 || n > 1100 {
			t.Errorf("server %d got %d of 4,000: %v", i, n, got)
		}
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	for _, m := range []Method{Random, RoundRobin, LeastConnections, EWMA} {
		w := newWorld(repeated(20, 0)...)
		p := w.picker(m)
		if n := testing.AllocsPerRun(100, func() { w.servers[p.Pick()].load.Begin() }); n != 0 {
			t.Errorf("%s: %v allocations", m, n)
		}
	}
}

func TestNames(t *testing.T) {
	for m := Hash; m <= Maglev; m++ {
		if got, ok := Parse(m.String()); !ok || got != m {
			t.Errorf("Parse(%q) = %v, %v", m, got, ok)
		}
	}
	for _, text := range []string{"", "Random", "rr", "invalid", " random"} {
		if m, ok := Parse(text); ok {
			t.Errorf("Parse(%q) = %v", text, m)
		}
	}
}
