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
	limits := &timeouts
	if 10*int(t.len.Load()) > 9*len(t.slots) {
		limits = &pressed
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
		if state == free || d <= limits[state] || !l.of(seq) || !t.remove(i, seq) {
			continue
		}
		freed++
		if d > timeouts[state] {
			t.expired.Add(1)
		} else {
			t.evicted.Add(1)
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
	var m image
	var e Entry
	for i := range t.used.Load() {
		s := &t.slots[i]
		seq, l, seen := s.seq.Load(), s.loadLive(), s.seen.Load()
		state := l.state()
		if state == free || !l.of(seq) || !s.load(&m, seq) {
			continue
		}
		now := t.now.Load()
		info := Info{Ref: ref(i, seq), State: state, Age: idle(now, uint32(m.meta>>metaCreated)), Idle: idle(now, seen)}
		if info.Idle > timeouts[state] {
			continue
		}
		info.ExpiresIn = timeouts[state] - info.Idle
		e = Entry{Backend: m.backend, Via: m.via, Kind: uint8(m.meta >> metaKind), Checked: l.checked()}
		e.Orig, e.Reply = m.tuple[Original], m.tuple[Reply]
		if !f(&e, info) {
			return
		}
	}
}
