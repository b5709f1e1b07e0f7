package node

import (
	"slices"
	"testing"

	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/services"
)

// An answer that is on its way while its conversation ends counts once, whichever is first.
func TestAnswerAtTheEnd(t *testing.T) {
	for _, c := range []struct {
		name          string
		calls         []func(*use)
		waiting, open int64 // afterwards, while one more conversation waits
	}{
		{"answered", []func(*use){(*use).Answered}, 1, 2},
		{"answered, then ended", []func(*use){(*use).Answered, (*use).End}, 1, 1},
		{"ended, then answered", []func(*use){(*use).End, (*use).Answered}, 1, 1},
		{"answered twice", []func(*use){(*use).Answered, (*use).Answered, (*use).End}, 1, 1},
		{"resumed", []func(*use){(*use).Resumed, (*use).End}, 1, 1},
		{"resumed, and heard of", []func(*use){(*use).Resumed, (*use).Answered}, 1, 2},
		{"ended", []func(*use){(*use).End}, 1, 1},
	} {
		loads := new(balance.Loads)
		load := loads.FindOrMake(7)
		w := newWatch(func() *services.Table { return nil }, loads, 0)
		u := &use{watch: w, load: load}
		load.Begin()
		for call := range slices.Values(c.calls) {
			call(u)
		}
		load.Begin()
		if load.Waiting() != c.waiting || load.Open() != c.open {
			t.Errorf("%s: %d wait and %d are open, want %d and %d", c.name, load.Waiting(), load.Open(), c.waiting, c.open)
		}
	}
}
