package supervise

import (
	"slices"
	"testing"
	"time"
)

// TestPause has the pauses after rows of runs.
func TestPause(t *testing.T) {
	const ms = time.Millisecond
	served := func(n int, lasted time.Duration) (list []run) {
		for range n {
			list = append(list, run{true, lasted})
		}
		return list
	}
	failed := func(n int) []run { return slices.Repeat([]run{{false, ms}}, n) }
	for _, c := range []struct {
		name string
		runs []run
		want time.Duration
	}{
		{"one death", served(1, time.Hour), 0},
		{"three deaths within seconds", served(3, time.Second), 0},
		{"five deaths within seconds", served(5, time.Second), 0},
		{"an agent that dies of what it reads", served(6, time.Second), 100 * ms},
		{"the same, again", served(8, time.Second), 400 * ms},
		{"the same, for ever", served(1000, time.Second), 5 * time.Second},
		{"a day of deaths", served(1000, time.Hour), 0},
		{"deaths forgotten", slices.Concat(served(20, time.Second), served(1, soon)), 0},
		{"it does not start", failed(1), 100 * ms},
		{"it does not start, again", failed(3), 400 * ms},
		{"it never starts", failed(1000), 5 * time.Second},
		{"it starts at last", slices.Concat(failed(5), served(1, time.Hour)), 0},
		{"it starts slowly, and in vain", []run{{false, time.Hour}, {false, time.Hour}}, 200 * ms},
	} {
		var s streak
		for _, r := range c.runs {
			s = s.add(r.served, r.lasted)
		}
		if got := s.pause(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

type run struct {
	served bool
	lasted time.Duration
}
