package flow

import (
	"context"
	"time"
)

// sweepParts is the number of steps in which Sweep sees every slot.
const sweepParts = 60

// Run advances the clock and sweeps, once per second, until ctx is done.
func (t *Table) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.Sweep()
		}
	}
}

// Sweep reads the clock and frees what has expired in the next sixtieth of the table. It returns how many flows that were.
func (t *Table) Sweep() int {
	t.sweepMu.Lock()
	defer t.sweepMu.Unlock()
	now := t.clock()
	t.now.Store(now)
	fair := len(t.slots) // what an owner may have without being pressed
	if 10*int(t.len.Load()) > 9*len(t.slots) {
		fair = t.owned.Fair()
	}
	freed, used := 0, t.used.Load()
	for range (used + sweepParts - 1) / sweepParts {
		if t.cursor >= used {
			t.cursor = 0
		}
		i := t.cursor
		t.cursor++
		s := &t.slots[i]
		seq, l, seen := s.seq.Load(), s.loadLive(), s.seen.Load()
		state, d := l.state(), idle(now, seen)
		if state == free || d <= pressed[state] || !l.of(seq) {
			continue
		}
		late := d > timeouts[state]
		if !late && t.owned.Charge(i) <= fair || !t.remove(i, seq) {
			continue
		}
		freed++
		if late {
			t.expired.Add(1)
		} else {
			t.pressed.Add(1)
		}
	}
	return freed
}

// Info is what Range tells of a flow besides its Entry. Times are in seconds.
type Info struct {
	Ref                  uint32
	State                State
	Age, Idle, ExpiresIn uint32
}

// Range calls f for every flow until f returns false. Flows that come or go meanwhile may be missed. The entry is
// borrowed until f returns; f may call Delete.
func (t *Table) Range(f func(*Entry, Info) bool) {
	var r record
	var e Entry
	for i := range t.used.Load() {
		s := &t.slots[i]
		seq, l, seen := s.seq.Load(), s.loadLive(), s.seen.Load()
		state := l.state()
		if state == free || !l.of(seq) || !t.load(i, &r, seq) {
			continue
		}
		now := t.now.Load()
		info := Info{Ref: ref(i, seq), State: state, Age: idle(now, r.created), Idle: idle(now, seen)}
		if info.Idle > timeouts[state] {
			continue
		}
		info.ExpiresIn = timeouts[state] - info.Idle
		e = r.entry()
		e.Checked = l.checked()
		if !f(&e, info) {
			return
		}
	}
}
