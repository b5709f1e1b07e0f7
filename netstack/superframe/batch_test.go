package superframe

import (
	"testing"

	"tapestry.dev/tapestry/netstack/dgram"
)

func TestRunJoins(t *testing.T) {
	const room = 60000
	one, other := Way{Header: new(Header)}, Way{Header: new(Header)}
	for name, c := range map[string]struct {
		r       run
		n, size int
		want    bool
	}{
		"the first":              {run{}, 100, 100, false},
		"an equal one":           {run{to: one, n: 100, size: 100}, 100, 100, true},
		"a shorter one":          {run{to: one, n: 200, size: 100}, 1, 1, true},
		"after a shorter one":    {run{to: one, n: 250, size: 100}, 100, 100, false},
		"as short as the last":   {run{to: one, n: 250, size: 100}, 50, 50, false},
		"a longer one":           {run{to: one, n: 100, size: 100}, 101, 101, false},
		"an empty one":           {run{to: one, n: 100, size: 100}, 0, 0, false},
		"after an empty one":     {run{to: one, n: 0, size: 0}, 0, 0, false},
		"several":                {run{to: one, n: 100, size: 100}, 250, 100, true},
		"several of other size":  {run{to: one, n: 100, size: 100}, 90, 50, false},
		"the 64th":               {run{to: one, n: 6300, size: 100}, 100, 100, true},
		"the 65th":               {run{to: one, n: 6400, size: 100}, 100, 100, false},
		"more than fits":         {run{to: one, n: 59000, size: 1000}, 1001, 1000, false},
		"as much as fits":        {run{to: one, n: 59000, size: 1000}, 1000, 1000, true},
		"several beyond the max": {run{to: one, n: 6000, size: 100}, 500, 100, false},
	} {
		if got := c.r.joins(&run{to: one, n: c.n, size: c.size}, room); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if r := (run{to: one, n: 100, size: 100}); r.joins(&run{to: other, n: 100, size: 100}, room) {
		t.Error("a datagram joined those that go another way")
	} else if r.joins(&run{to: one, n: 100, size: 100, came: dgram.Head{Class: 3}}, room) {
		t.Error("a datagram that met congestion joined one that did not")
	}
}
