package flow

import (
	"math/bits"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/flow/slots"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

// A search for what goes takes so many rounds at most, each of which looks at 16 flows at most. Among flows that were
// worth keeping, established connections apart, the first round finds one; among the connections of an owner who has
// nothing else, the fourth. More than that are rare: a flow that is not cheap is put aside when it was seen.
const (
	evictRounds = 64
	lastRounds  = 4
)

// take gives a slot to an owner, for a client: a free one, or that of a flow that may go by the rule of package share.
func (t *Table) take(owner uint64, client slots.Client) (uint32, bool) {
	var c slots.Candidates
	last := 0
	for round := range evictRounds {
		i, from := t.owned.Take(owner, client, &c)
		reason := &t.fromOwn
		switch from {
		case share.Free:
			t.len.Add(1)
			t.use(i)
			return i, true
		case share.Refuse:
			return 0, false
		case share.Most:
			reason = &t.fromMost
		case share.Own:
		}
		v := victim{now: t.now.Load()}
		for number, slot := range c.List() {
			if !v.consider(t, slot, crowd(c.Many(number))) {
				c.Keep(number)
			}
		}
		if c.Last() {
			last++
		}
		if v.cheap() || v.crowd > v.fewest || last > 0 && v.rank > 0 || last >= lastRounds || round >= evictRounds/2 {
			v.evict(t, reason)
		}
	}
	return 0, false
}

// use notes that slot i is going to be written, before it is.
func (t *Table) use(i uint32) {
	for used := t.head.used.Load(); uint64(i) >= used; used = t.head.used.Load() {
		t.head.used.CompareAndSwap(used, uint64(i+1))
	}
	for used := t.used.Load(); i >= used; used = t.used.Load() {
		t.used.CompareAndSwap(used, i+1)
	}
}

// release gives back a slot that take gave.
func (t *Table) release(i uint32) {
	t.owned.Release(i)
	t.len.Add(-1)
}

// makeRoom evicts a flow from the buckets near either key of e. It may be of e's owner, or of one who has as many.
func (t *Table) makeRoom(e *Entry) bool {
	found, mine := false, t.owned.Charged(e.Owner)
	for _, tp := range [2]*packet.Tuple{&e.Orig, &e.Reply} {
		n := t.home(t.hash(tp))
		v := victim{now: t.now.Load()}
		for range maxProbe {
			for j := range bucketKeys {
				k := t.index[n].keys[j].Load()
				switch {
				case k == 0:
					found = true
				case t.owned.Charge(keySlot(k)) >= mine: // e's owner is charged for the slot that e is to be in
					v.consider(t, keySlot(k), 0)
				}
			}
			n = t.after(n)
		}
		found = v.evict(t, &t.crowded) || found
	}
	return found
}

// victim is the best flow to evict of those that were considered: one whose time is over, or else one of the client
// who has the most, the cheapest of those, the one that has been idle for longest.
type victim struct {
	now               uint32
	found             bool
	slot, seq         uint32
	late              bool // its time is over
	crowd, rank, idle uint32
	fewest            uint32 // the smallest crowd of those considered
}

// consider looks at a flow, of a client who has a crowd of them. It reports whether the flow is cheap, by itself.
func (v *victim) consider(t *Table, i, crowd uint32) bool {
	s := &t.slots[i]
	seq, l, seen := s.seq.Load(), s.loadLive(), s.seen.Load()
	state := l.state()
	if state == free || !l.of(seq) {
		return true
	}
	d := idle(v.now, seen)
	c := victim{
		now: v.now, found: true, slot: i, seq: seq, idle: d, late: d > timeouts[state], rank: uint32(cheap[state]),
		crowd: crowd,
	}
	if d > pressed[state] {
		c.rank = max(c.rank, pressedRank)
	}
	c.fewest = c.crowd
	if v.found {
		c.fewest = min(c.crowd, v.fewest)
	}
	if !v.found || c.before(v) {
		*v = c
	}
	v.fewest = c.fewest
	return c.cheap()
}

// pressedRank is that of a flow that has been idle for longer than pressed allows. From there on a flow is cheap.
const pressedRank = 3

func (v *victim) cheap() bool { return v.found && (v.late || v.rank >= pressedRank) }

// before reports whether v goes rather than o.
func (v *victim) before(o *victim) bool {
	switch {
	case v.late != o.late:
		return v.late
	case v.crowd != o.crowd:
		return v.crowd > o.crowd
	case v.rank != o.rank:
		return v.rank > o.rank
	}
	return v.idle > o.idle
}

// evict removes the flow and counts it; false when there was none.
func (v *victim) evict(t *Table, reason *atomic.Uint64) bool {
	if !v.found || !t.remove(v.slot, v.seq) {
		return false
	}
	if v.late {
		reason = &t.expired
	}
	reason.Add(1)
	return true
}

// fewFlows is how many flows a client may have without being preferred as one to lose some.
const fewFlows = 64

// crowd is a number of flows by powers of two from fewFlows on: a small difference is none.
func crowd(n int) uint32 { return uint32(bits.Len32(uint32(n / fewFlows))) }

// clientOf gives who sent the first packet of a flow. A client of IPv6 is a whole /64, which one can have for oneself.
func (h *hasher) clientOf(orig *packet.Tuple) slots.Client {
	w0, w1 := word0(&orig.Src), word1(&orig.Src)
	if w0 != 0 { // not of IPv4
		w1 = 0
	}
	return slots.ClientOf(mum(w0^h.seed2, w1^h.seed3^bits.RotateLeft64(uint64(orig.Space), 32)))
}
