package poll

import (
	"testing"
	"time"
)

func TestRhythm(t *testing.T) {
	const us = time.Microsecond
	for _, c := range []struct {
		name            string
		slept, handled  time.Duration
		brisk, muchToDo bool
	}{
		{"request and reply", 50 * us, 10 * us, true, false},
		{"now and then", 10 * time.Millisecond, 10 * us, false, false},
		{"a flood", 5 * us, 200 * us, true, true},
		{"at the bounds", often, long, false, false},
	} {
		r := rhythm{last: time.Hour}
		r.woke(time.Hour + c.slept)
		r.handled(time.Hour + c.slept + c.handled)
		if r.brisk != c.brisk || r.long != c.muchToDo {
			t.Errorf("%s: brisk %v, long %v; want %v, %v", c.name, r.brisk, r.long, c.brisk, c.muchToDo)
		}
	}
}

// No loop lingers shortly after there was much to do, and two loops never linger at once.
func TestLinger(t *testing.T) {
	p, err := New(1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.busyAt.Store(int64(p.now()))
	if p.calm() {
		t.Error("calm, though there was much to do this moment")
	}
	p.busyAt.Store(int64(p.now() - busy - 1))
	if !p.calm() {
		t.Error("not calm, though there was nothing to do for long")
	}
	p.lingers.Store(true)
	if n, errno := p.linger(nil); n != 0 || errno != 0 {
		t.Errorf("a second loop lingers: %d, %v", n, errno)
	}
}
