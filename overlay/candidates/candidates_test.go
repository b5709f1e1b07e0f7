package candidates

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	start = time.Unix(1000, 0)
	v4    = netip.MustParseAddrPort("192.0.2.1:51820")
	v6    = netip.MustParseAddrPort("[2001:db8::1]:51820")
	far   = netip.MustParseAddrPort("198.51.100.7:4500") // no candidate
)

// world plays the network for a Choice: which addresses answer.
type world struct {
	Choice
	now    time.Time
	works  map[netip.AddrPort]bool
	probed map[netip.AddrPort]int
	moves  []string
}

func newWorld(addrs ...netip.AddrPort) *world {
	w := &world{now: start, works: map[netip.AddrPort]bool{}, probed: map[netip.AddrPort]int{}}
	w.Set(addrs)
	w.At(addrs[0], w.now)
	for _, a := range addrs {
		w.works[a] = true
	}
	return w
}

// run lets time pass in looks of 50 ms. Rounds of probes to the present address end every second. Answers take no time.
func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(50 * time.Millisecond) {
		if w.now.Sub(start)%time.Second == 0 {
			w.Round(w.works[w.at], w.now)
		}
		for _, p := range w.Step(w.now) {
			w.probed[p.To]++
			if !w.works[p.To] {
				continue
			}
			if to, move := w.Answer(p.Token, w.now); move {
				w.moves = append(w.moves, fmt.Sprintf("%v %v", w.now.Sub(start), to.Addr()))
			}
		}
	}
}

// check compares what happened since the last check.
func (w *world) check(t *testing.T, what string, moves ...string) {
	t.Helper()
	if !slices.Equal(w.moves, moves) {
		t.Errorf("%s: moved %q, want %q", what, w.moves, moves)
	}
	w.moves = nil
	clear(w.probed)
}

func TestMovesAndReturns(t *testing.T) {
	w := newWorld(v4, v6)
	w.run(10 * time.Second)
	if len(w.probed) > 0 {
		t.Errorf("while all is well, %v were probed", w.probed)
	}
	w.works[v4] = false
	w.run(10 * time.Second)
	w.check(t, "the first broke", "10s 2001:db8::1")
	if got := w.Silent(); !slices.Equal(got, []netip.AddrPort{v4}) {
		t.Errorf("silent are %v, want %v", got, v4)
	}
	w.run(2 * time.Minute) // at 140 s
	if n := w.probed[v4]; n < 3 || n > 4 {
		t.Errorf("the broken one was probed %d times in two minutes, want once in 30 s", n)
	}
	w.check(t, "it stays broken")
	w.works[v4] = true
	w.run(time.Minute)
	if len(w.moves) != 1 || !strings.HasSuffix(w.moves[0], "192.0.2.1") {
		t.Errorf("the first works again: moved %q", w.moves)
	}
	if got := w.Silent(); len(got) > 0 {
		t.Errorf("silent are %v, want none", got)
	}
}

// One answer is not enough to return to a candidate, and each failure soon after a return doubles the wait.
func TestFlapping(t *testing.T) {
	w := newWorld(v4, v6)
	var waits []time.Duration
	for range 7 {
		w.works[v4] = false
		w.run(2 * time.Second)
		left := w.now
		w.works[v4] = true
		for w.at != v4 {
			w.run(time.Second)
		}
		waits = append(waits, w.now.Sub(left).Round(10*time.Second))
	}
	if want := "[30s 1m0s 2m0s 4m0s 8m0s 16m0s 16m0s]"; fmt.Sprint(waits) != want {
		t.Errorf("waits before returns are %v, want %v", waits, want)
	}
	w.run(calm)
	w.works[v4] = false
	w.run(2 * time.Second)
	w.works[v4] = true
	left := w.now
	for w.at != v4 {
		w.run(time.Second)
	}
	if wait := w.now.Sub(left); wait > 2*patience {
		t.Errorf("after %v of calm the wait is %v, want about %v", calm, wait, patience)
	}
	w.moves = nil
	w.works[v4] = false
	w.run(2 * time.Second)
	for range 20 { // every other probe is lost
		n := w.probed[v4]
		for w.probed[v4] == n {
			w.works[v4] = w.now.Sub(start)/time.Second%2 == 0
			w.run(50 * time.Millisecond)
		}
	}
	if len(w.moves) > 1 {
		t.Errorf("traffic moved %q on a path that loses half of the probes", w.moves)
	}
}

// A peer that is silent everywhere costs ever less, and traffic stays where it is.
func TestSilentEverywhere(t *testing.T) {
	w := newWorld(v4, v6)
	w.works[v4], w.works[v6] = false, false
	w.run(10 * time.Second)
	if n := w.probed[v6]; n > 7 {
		t.Errorf("%d probes in 10 s, want at most 7", n)
	}
	w.check(t, "nothing answers")
	w.run(10 * time.Minute)
	if n := w.probed[v6]; n > 61 {
		t.Errorf("%d probes in ten minutes, want one in 10 s", n)
	}
	w.check(t, "nothing answers")
	w.works[v6] = true
	w.run(11 * time.Second)
	if len(w.moves) != 1 || w.at != v6 {
		t.Errorf("the second answers: moved %q", w.moves)
	}
	// After a while in which nothing worked, a path that works says nothing of the less preferred ones.
	w = newWorld(v4, v6)
	w.works[v4], w.works[v6] = false, false
	w.run(3 * time.Second)
	if n := len(w.Silent()); n != 2 {
		t.Errorf("%d candidates are silent, want 2", n)
	}
	w.works[v4] = true
	w.run(2 * time.Second)
	if got := w.Silent(); len(got) > 0 {
		t.Errorf("silent are %v, want none", got)
	}
}

// The peer itself decides where it is heard from, and only who left a candidate goes back to it.
func TestRoaming(t *testing.T) {
	w := newWorld(v4, v6)
	w.At(v6, w.now)
	w.run(5 * time.Minute)
	w.check(t, "the peer moved by itself")
	if len(w.probed) > 0 {
		t.Errorf("%v were probed, want none", w.probed)
	}
	w.At(far, w.now)
	w.works[far] = true
	w.run(5 * time.Minute)
	w.check(t, "the peer moved to an address that is no candidate")
	w.works[far] = false
	w.run(2 * time.Second)
	if w.at != v4 {
		t.Errorf("the peer is at %v after %v fell silent, want %v", w.at, far, v4)
	}
}

func TestBusyPeer(t *testing.T) {
	w := newWorld(v4, v6)
	w.works[v4], w.works[v6] = false, false
	w.run(1500 * time.Millisecond)
	w.Round(true, w.now) // its answers come late, those to the address that was asked first before the others
	for i := range w.all {
		if _, move := w.Answer(w.all[i].token, w.now); move {
			t.Error("traffic moved though the present address answered")
		}
	}
}

func TestAttempts(t *testing.T) {
	for _, c := range []struct {
		name  string
		addrs []netip.AddrPort
		heard netip.AddrPort
		want  string
	}{
		{"one address", []netip.AddrPort{v4}, netip.AddrPort{}, "- - - - - -"},
		{"two", []netip.AddrPort{v4, v6}, netip.AddrPort{}, "v4 v4 v6 v4 v6 v4"},
		{"heard from elsewhere", []netip.AddrPort{v4, v6}, far, "far far v4 v6 far v4"},
	} {
		w := newWorld(c.addrs...)
		if c.heard.IsValid() {
			w.At(c.heard, w.now)
		}
		names := map[netip.AddrPort]string{v4: "v4", v6: "v6", far: "far", {}: "-"}
		var got []string
		for i := range 6 {
			a := w.Attempt(i, w.now)
			got = append(got, names[a])
			if a.IsValid() {
				w.At(a, w.now)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: attempts go to %s, want %s", c.name, s, c.want)
		}
	}
	w := newWorld(v4, v6)
	w.At(w.Attempt(2, w.now), w.now)
	w.Shook()
	if got := w.Silent(); !slices.Equal(got, []netip.AddrPort{v4}) {
		t.Errorf("after a handshake with the second, silent are %v, want the first", got)
	}
	w.run(5 * time.Second) // the peer had only just started
	w.check(t, "after a handshake with the second, while the first works", "3s 192.0.2.1")
}

func TestSetKeeps(t *testing.T) {
	w := newWorld(v4, v6)
	w.works[v4] = false
	w.run(5 * time.Second)
	w.Set([]netip.AddrPort{v4, far, v6, v6, {}})
	if got := w.Addrs(); !slices.Equal(got, []netip.AddrPort{v4, far, v6}) || !w.Are(got) {
		t.Errorf("candidates are %v", got)
	}
	if got := w.Silent(); !slices.Equal(got, []netip.AddrPort{v4}) {
		t.Errorf("silent are %v, want %v", got, v4)
	}
	w.Set([]netip.AddrPort{v4})
	w.moves = nil
	w.run(time.Minute)
	w.check(t, "a single candidate")
	if w.Several() || len(w.Silent()) > 0 || len(w.probed) > 0 {
		t.Errorf("a single candidate is silent: %v, probed: %v", w.Silent(), w.probed)
	}
}
