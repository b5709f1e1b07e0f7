package flow

import (
	"context"
	"time"
)

// sweepParts is how many calls of Sweep it takes to see every slot.
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

// Sweep reads the clock and frees the expired flows in the next sixtieth of the table. It returns how many flows it
// freed.
func (t *Table) Sweep() int {
	t.sweepMu.Lock()
	defer t.sweepMu.Unlock()
	now := t.clock()
	t.now.Store(now)
	fair := len(t.slots) // flows that an owner may have before the shorter times apply to it
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

// Info is what Range and OnEnd say of a flow besides its Entry. Times are in seconds; ExpiresIn is 0 for a flow that
// has ended. Idle is longer than the truth for a flow that was reset before it was established (see refusedFor).
type Info struct {
	Ref                  uint32
	State                State
	Age, Idle, ExpiresIn uint32
}

// OnEnd makes the table call ended once for every flow that leaves it from now on, for whatever reason, with the flow's
// last state. No lock is held during the call. The caller is as often a packet's goroutine as it is Sweep, so ended
// must neither block nor allocate. OnEnd must be called before the table is shared.
func (t *Table) OnEnd(ended func(Entry, Info)) { t.ended = ended }

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
		info := t.infoOf(&r, ref(i, seq), state, seen)
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

func (t *Table) infoOf(r *record, ref uint32, state State, seen uint32) Info {
	now := t.now.Load()
	return Info{Ref: ref, State: state, Age: idle(now, r.created), Idle: idle(now, seen)}
}
