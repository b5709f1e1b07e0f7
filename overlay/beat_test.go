package overlay

import (
	"testing"
	"time"
	"unsafe"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

// A watched peer answers beats while it is willing, and not otherwise; a peer that nobody watches is asked nothing.
func TestBeats(t *testing.T) {
	a, b := pair(t, nil)
	if got := a.Beats(); len(got) != 0 {
		t.Fatalf("nobody is watched, and there are beats: %v", got)
	}
	watched := b.as(b.loopback())
	watched.Watched = true
	a.set(watched)
	await.Until(t, "the peer to be watched", func() bool { l := a.Beats(); return len(l) == 1 && !l[0].Since.IsZero() })
	last := func() time.Time { return a.Beats()[0].Answered }
	b.AnswerBeats(time.Now().Add(time.Hour))
	await.Until(t, "an answer", func() bool { return !last().IsZero() })
	one := last()
	await.Until(t, "another answer", func() bool { return last().After(one) })
	b.AnswerBeats(time.Time{})
	// Answers that were on the way may still come; then there is none for as long as four beats.
	await.Until(t, "the end of the answers", func() bool { return time.Since(last()) > 4*BeatEvery })
	if got := a.Beats()[0].Name; got != watched.Name {
		t.Errorf("the peer is called %q, want %q", got, watched.Name)
	}
	watched.Watched = false
	a.set(watched)
	await.Until(t, "nobody to be watched", func() bool { return len(a.Beats()) == 0 })
}

// A peer learns with the next beat that it is passed over, answers all the same, and learns with the next one that it
// is not any longer.
func TestPassedOver(t *testing.T) {
	a, b := pair(t, nil)
	watched := b.as(b.loopback())
	watched.Watched = true
	a.set(watched)
	b.AnswerBeats(time.Now().Add(time.Hour))
	answered := func() time.Time { return a.Beats()[0].Answered }
	await.Until(t, "an answer", func() bool { l := a.Beats(); return len(l) == 1 && !answered().IsZero() })
	begun := time.Now().Add(-time.Hour)
	if got := b.Askers(begun); got != nil {
		t.Errorf("nobody is passed over, and it is told %v", got)
	}
	a.PassOver(map[string]bool{"somebody else": true, watched.Name: true})
	await.Until(t, "it to be told", func() bool { return len(b.Askers(begun)) == 1 })
	for name, passes := range b.Askers(begun) {
		if !passes || name != a.as(a.loopback()).Name {
			t.Errorf("it is told that %s passes it over: %t", name, passes)
		}
	}
	if got := b.Askers(time.Now().Add(time.Hour)); got != nil {
		t.Errorf("what was told before counts: %v", got)
	}
	one := answered()
	await.Until(t, "an answer to such a beat", func() bool { return answered().After(one) })
	a.PassOver(nil)
	await.Until(t, "it to be told otherwise", func() bool { return b.Askers(begun) == nil })
}

// More peers are watched than there is room for beats in the ring. None is left out, and none is sent twice.
func TestBeatsOfMany(t *testing.T) {
	m := quietMesh(func(uint64, [][]byte) {})
	m.begun = time.Now().Add(-time.Hour)
	const peers = 5 * controlSize
	var list []*peer
	var cfgs []Peer
	for i := range peers {
		p := &peer{id: uint64(i + 2), key: PublicKey{byte(i), byte(i >> 8), 1}}
		p.live.Store(true)
		list, cfgs = append(list, p), append(cfgs, Peer{ID: p.id, StackAddrs: stackAddrs(2), Watched: true})
	}
	m.table.Store(newTable(list, cfgs))
	w := newWireguard()
	now := time.Now()
	for round := range 3 {
		sent := 0
		for begun := now; ; now = now.Add(beatPause) {
			due := m.beatAll(now)
			waiting := m.ring.nctl
			w.read(t, m, waiting)
			sent += waiting
			if due.Sub(now) > beatPause {
				if now = due; due.Sub(begun) > 2*BeatEvery {
					t.Errorf("round %d: the next beat is due %s after the first", round, due.Sub(begun))
				}
				break
			}
		}
		if sent < peers || sent > peers+controlSize {
			t.Errorf("round %d: %d beats for %d peers", round, sent, peers)
		}
	}
	for _, p := range list {
		if p.beatAt.IsZero() {
			t.Fatalf("peer %d had no beat", p.id)
		}
	}
}

// A beat of an earlier version has no byte of flags, and takes nothing back that it does not say.
func TestEchoOfPassing(t *testing.T) {
	for _, addrs := range [][2]packet.Addr{
		{packet.AddrFrom(stackAddrs(1)[0]), packet.AddrFrom(stackAddrs(2)[0])},
		{packet.Addr{0xfd, 15: 1}, packet.Addr{0xfd, 15: 2}},
	} {
		for _, passes := range []bool{false, true} {
			e := echo{src: addrs[0], dst: addrs[1], passes: passes}
			if passes {
				e.size = echoFlagged
			}
			var got echo
			buf := make([]byte, 200)
			if !got.parse(buf[:e.put(buf)]) || !got.isBeat() || got.passes != passes || got.moved || got.back || got.back6 {
				t.Errorf("of a beat that passes %t over comes %+v", passes, got)
			}
		}
	}
}

// clockSet returns t as it would be if the clock had been set by d: the time of day differs, and the monotonic one does
// not.
func clockSet(t time.Time, d time.Duration) time.Time {
	wall := (*uint64)(unsafe.Pointer(&t)) // its bits from 30 on hold seconds, see package time
	*wall += uint64(d/time.Second) << 30
	return t
}

// A clock that is set makes no peer silent, and nobody answer for longer or for less.
func TestBeatsClockSet(t *testing.T) {
	now := time.Now()
	for _, d := range []time.Duration{-time.Hour, time.Hour} {
		if set := clockSet(now, d); set.UnixNano()-now.UnixNano() != int64(d) || set.Sub(now) != 0 {
			t.Fatalf("a clock that is set by %s says %s instead of %s", d, set, now)
		}
	}
	a, b := pair(t, nil)
	watched := b.as(b.loopback())
	watched.Watched = true
	a.set(watched)
	b.AnswerBeats(time.Now().Add(time.Hour))
	await.Until(t, "an answer", func() bool { l := a.Beats(); return len(l) == 1 && !l[0].Answered.IsZero() })
	for _, d := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		beat, later := a.Beats()[0], clockSet(time.Now(), d)
		for what, at := range map[string]time.Time{"watched": beat.Since, "answered": beat.Answered} {
			if ago := later.Sub(at); ago < 0 || ago > time.Hour {
				t.Errorf("after the clock was set by %s, the peer was %s %s ago", d, what, ago)
			}
		}
		ask := &echo{}
		a.AnswerBeats(clockSet(time.Now().Add(time.Hour), d))
		if a.refuses(ask) {
			t.Errorf("after the clock was set by %s, it refuses an hour too early", d)
		}
		a.AnswerBeats(clockSet(time.Now(), d))
		if !a.refuses(ask) {
			t.Errorf("after the clock was set by %s, it answers for longer than it may", d)
		}
	}
}

// An answer to a beat is noted at once, and the prober is not woken for it, as it is for one to a probe of the path: it
// would look at all peers for each of them.
func TestBeatWakesNobody(t *testing.T) {
	m := quietMesh(func(uint64, [][]byte) {})
	m.begun = time.Now().Add(-time.Hour)
	m.cookie = newCookie()
	p := m.table.Load().peers[0]
	answer := func(path uint16, cookie [8]byte) {
		t.Helper()
		e := echo{src: packet.AddrFrom(stackAddrs(2)[0]), dst: m.stackAddrs[0], path: path, cookie: cookie, reply: true}
		buf := make([]byte, 200)
		if !m.takeEcho(p, buf[:e.put(buf)]) {
			t.Fatal("it is no answer")
		}
	}
	answer(0, newCookie())
	if p.beaten.Load() != 0 {
		t.Error("an answer to somebody else's beat is noted")
	}
	answer(0, m.cookie)
	if p.beaten.Load() == 0 || p.confirmed.Load() == 0 {
		t.Error("the answer to a beat is not noted")
	}
	if len(m.wakeProber) != 0 {
		t.Error("the prober is woken for an answer to a beat")
	}
	answer(1400, m.cookie)
	if len(m.wakeProber) != 1 {
		t.Error("the prober is not woken for an answer to a probe")
	}
}
