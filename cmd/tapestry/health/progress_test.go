package health

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var took []time.Duration
		var failed int
		p := Progress{Synced: func(d time.Duration, err error) {
			took = append(took, d)
			if err != nil {
				failed++
			}
		}}
		if !p.Updated().IsZero() || p.Alive() != nil || !p.Eligible() {
			t.Error("a node that has not begun is stuck or leaving")
		}
		end := p.Begin()
		time.Sleep(stuckTime)
		if p.Alive() != nil {
			t.Error("stuck too early")
		}
		time.Sleep(time.Second)
		if p.Alive() == nil {
			t.Error("a snapshot that takes more than a minute is no problem")
		}
		end(true, errors.New("half"))
		if p.Alive() != nil || !p.Updated().IsZero() || p.Eligible() {
			t.Error("after a snapshot of which only half was applied, on a node that leaves")
		}
		end = p.Begin()
		time.Sleep(time.Second)
		end(false, nil)
		if !p.Updated().Equal(time.Now()) || !p.Eligible() {
			t.Error("after a good snapshot")
		}
		if !slices.Equal(took, []time.Duration{stuckTime + time.Second, time.Second}) || failed != 1 {
			t.Errorf("took %v, %d failed", took, failed)
		}
	})
}

func TestTriggered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Progress
		p.Triggered([]time.Time{time.Now()}) // nobody wants to know
		var got []time.Duration
		p.Programmed = func(d time.Duration) { got = append(got, d) }
		p.Triggered([]time.Time{time.Now().Add(-3 * time.Second), time.Now().Add(time.Hour)})
		if !slices.Equal(got, []time.Duration{3 * time.Second, 0}) {
			t.Errorf("got %v", got)
		}
	})
}
