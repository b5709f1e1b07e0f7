package overlay

import (
	"slices"
	"time"
)

// A beat is a probe that asks a peer whether it can take over addresses. Its echo has the path 0, which no other probe
// has. A Mesh answers beats only while it is willing; one of an earlier version always does. A beat may say that the
// peer is passed over for the time being, although it answers (flagPasses); one of an earlier version does not read
// that.

// BeatEvery is the time between two beats to a peer. It is a part of how long an agent that starts again is silent.
const BeatEvery = 50 * time.Millisecond

// Beat says when a watched peer answered.
type Beat struct {
	Name string
	// Since is when this Mesh began to watch the peer, Answered when it answered last; zero for never.
	Since, Answered time.Time
}

// AnswerBeats has this Mesh answer the beats of others until then, and not afterwards.
func (m *Mesh) AnswerBeats(until time.Time) { m.willing.Store(m.nanos(until)) }

// PassOver has the beats for the peers of these names say that they are passed over, and no others. The Mesh keeps the
// map, which must not be changed afterwards.
func (m *Mesh) PassOver(peers map[string]bool) { m.passing.Store(&peers) }

// Askers returns the names of the peers that have sent a beat since a time, each with whether its last one said that
// this Mesh is passed over. It returns nil when none of them did.
func (m *Mesh) Askers(since time.Time) map[string]bool {
	tab, from := m.table.Load(), m.nanos(since)
	asks := func(p *peer) bool { at := p.asks.Load(); return at != 0 && at >= from }
	if !slices.ContainsFunc(tab.peers, func(p *peer) bool { return p.passes.Load() && asks(p) }) {
		return nil
	}
	all := map[string]bool{}
	for i, p := range tab.peers {
		if asks(p) {
			all[tab.cfgs[i].Name] = p.passes.Load()
		}
	}
	return all
}

// Beats returns when the watched peers have answered, in the order of their names.
func (m *Mesh) Beats() (list []Beat) {
	tab := m.table.Load()
	for i, p := range tab.peers {
		if !tab.cfgs[i].Watched {
			continue
		}
		list = append(list, Beat{Name: tab.cfgs[i].Name, Since: m.timeOf(p.watched.Load()), Answered: m.timeOf(p.beaten.Load())})
	}
	return list
}

// nanos returns a time as nanoseconds since this Mesh began. A clock that is set does not change what lies between, as
// it would with the time of day: all peers would have been silent for as long.
func (m *Mesh) nanos(t time.Time) int64 { return int64(t.Sub(m.begun)) }

// timeOf returns the time that nanos was given; zero for 0.
func (m *Mesh) timeOf(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return m.begun.Add(time.Duration(nanos))
}

// beatPause is when beats go on for which there was no room. WireGuard takes what waits much sooner.
const beatPause = 2 * time.Millisecond

// beatAll sends the beats that are due, and returns when the next one is; zero while no peer is watched. Those for
// which there is no room in the ring are sent first when it is called again.
func (m *Mesh) beatAll(now time.Time) (due time.Time) {
	tab := m.table.Load()
	for n := range tab.peers {
		i := (m.beatFrom + n) % len(tab.peers)
		p := tab.peers[i]
		if p.key.IsZero() {
			continue
		}
		if !m.beat(p, &tab.cfgs[i], now) {
			m.beatFrom = i
			return now.Add(beatPause)
		}
		if !tab.cfgs[i].Watched {
			continue
		}
		next := p.beatAt.Add(BeatEvery)
		if next.Before(now) { // it has no session
			next = now.Add(BeatEvery)
		}
		if due.IsZero() || next.Before(due) {
			due = next
		}
	}
	return due
}

// beat sends a beat to a peer that is watched, if one is due. It returns false when there is no room for it.
func (m *Mesh) beat(p *peer, cfg *Peer, now time.Time) bool {
	if !cfg.Watched {
		p.watched.Store(0)
		p.beaten.Store(0)
		return true
	}
	if p.watched.Load() == 0 {
		p.watched.Store(m.nanos(now))
	}
	// What is nearly due goes with what is due, so that the prober wakes once for all.
	if !p.live.Load() || now.Sub(p.beatAt) < BeatEvery-BeatEvery/8 {
		return true
	}
	own, theirs, ok := m.probeAddrs(cfg)
	if !ok {
		return true
	}
	m.probeSeq++
	e := echo{src: own, dst: theirs, seq: m.probeSeq, cookie: m.cookie}
	if names := m.passing.Load(); names != nil && (*names)[cfg.Name] {
		e.passes, e.size = true, echoFlagged // with the byte of flags
	}
	if !m.ring.control(e) {
		return false
	}
	p.beatAt = now
	return true
}

// beaten notes the answer to a beat. The prober is not woken: it would look at all peers for each peer's answer,
// several times a second.
func (m *Mesh) beaten(from *peer) {
	now := time.Now()
	from.confirmed.Store(now.UnixNano())
	from.beaten.Store(m.nanos(now))
}

// isBeat reports whether a probe asks for more than whether the path carries it.
func (e *echo) isBeat() bool { return e.path == 0 && !e.reply }

// refuses reports whether this Mesh leaves a probe without an answer.
func (m *Mesh) refuses(e *echo) bool { return e.isBeat() && m.nanos(time.Now()) >= m.willing.Load() }

// asked notes what a beat says of this Mesh.
func (m *Mesh) asked(from *peer, e *echo) {
	from.passes.Store(e.passes)
	from.asks.Store(m.nanos(time.Now()))
}
