package flow

import (
	"math/bits"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/flow/slots"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

// evictRounds bounds the rounds of a search for a flow that may go; each round looks at up to 16 flows. Among flows
// other than established connections the first round finds a flow; among the connections of an owner who has nothing
// else, the fourth (lastRounds). More rounds are rare, since a flow that is worth keeping is put aside when it was
// seen.
const (
	evictRounds = 64
	lastRounds  = 4
)

// take gets a slot for an owner and client: a free one, or that of a flow that may go by the rule of package share.
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
		enough := v.cheap() || v.crowd > v.fewest || last > 0 && v.rank > 0 || last >= lastRounds || round >= evictRounds/2
		// Still comes after the sequence number was read, so the flow of that number belongs to the candidates' owner.
		if enough && t.owned.Still(v.slot, &c) && v.end(t, reason) {
			// The slot is never free in between: other packets might take it, round after round.
			t.owned.Move(v.slot, owner, client, &c)
			return v.slot, true
		}
	}
	return 0, false
}

// use records that slot i is about to be written.
func (t *Table) use(i uint32) {
	for used := t.head.used.Load(); uint64(i) >= used; used = t.head.used.Load() {
		t.head.used.CompareAndSwap(used, uint64(i+1))
	}
	for used := t.used.Load(); i >= used; used = t.used.Load() {
		t.used.CompareAndSwap(used, i+1)
	}
}

// release returns a slot that take returned.
func (t *Table) release(i uint32) {
	t.owned.Release(i)
	t.len.Add(-1)
}

// makeRoom evicts flows from the buckets near the keys of e. Each belongs to an owner who has at least as many flows as
// e's owner, who may be that owner. It reports whether there is room now.
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
				case t.owned.Charge(keySlot(k)) >= mine: // e's owner is charged already for e's slot
					v.consider(t, keySlot(k), 0)
				}
			}
			n = t.after(n)
		}
		found = v.evict(t, &t.crowded) || found
	}
	return found
}

// victim is the best flow to evict among those considered: an expired one; else one of the client who has the most; of
// those the cheapest; of those the one that has been idle for longest.
type victim struct {
	now               uint32
	found             bool
	slot, seq         uint32
	late              bool // expired
	crowd, rank, idle uint32
	fewest            uint32 // the smallest crowd among those considered
}

// consider considers a flow of a client with this crowd. It reports whether the flow itself is cheap. A slot whose flow
// is about to be written is not: while its packet's goroutine does not run, a search would see nothing else.
func (v *victim) consider(t *Table, i, crowd uint32) bool {
	s := &t.slots[i]
	seq, l, seen := s.seq.Load(), s.loadLive(), s.seen.Load()
	state := l.state()
	if state == free || !l.of(seq) {
		return false
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

// pressedRank is the rank of a flow that has been idle for longer than pressed allows. Flows of this rank and higher
// are cheap.
const pressedRank = 3

func (v *victim) cheap() bool { return v.found && (v.late || v.rank >= pressedRank) }

// before reports whether v should go rather than o.
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

// evict removes the flow, counts it and releases its slot. It returns false when there was none.
func (v *victim) evict(t *Table, reason *atomic.Uint64) bool {
	if !v.end(t, reason) {
		return false
	}
	t.release(v.slot)
	return true
}

// end removes the flow and counts it. The slot is the caller's. It returns false when there was none.
func (v *victim) end(t *Table, reason *atomic.Uint64) bool {
	if !v.found || !t.empty(v.slot, v.seq) {
		return false
	}
	if v.late {
		reason = &t.expired
	}
	reason.Add(1)
	return true
}

// fewFlows is how many flows a client may have before it is preferred when a flow has to go.
const fewFlows = 64

// crowd returns the magnitude of a number of flows in powers of two from fewFlows on, so that small differences do not
// count.
func crowd(n int) uint32 { return uint32(bits.Len32(uint32(n / fewFlows))) }

// clientOf returns the client that sent the first packet of a flow. An IPv6 client is a whole /64, since one person can
// have that many addresses.
func (h *hasher) clientOf(orig *packet.Tuple) slots.Client {
	w0, w1 := word0(&orig.Src), word1(&orig.Src)
	if w0 != 0 { // not of IPv4
		w1 = 0
	}
	return slots.ClientOf(mum(w0^h.seed2, w1^h.seed3^bits.RotateLeft64(uint64(orig.Space), 32)))
}
