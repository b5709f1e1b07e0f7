package handover

import (
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// again is the time between the beginnings of two rounds, and settled is how long after the last change of a
	// gateway the last round begins. Gateways change by beats, eight of which come in a second.
	again, settled = 250 * time.Millisecond, 2 * time.Second
	// burst is how many flows are told at once, and pause is the time from one burst to the next.
	burst, pause = 100, 10 * time.Millisecond
	// restFactor is how much longer than it takes to look for flows that is not done again: it takes a quarter of a
	// processor at most.
	restFactor = 3

	// A flow of which there is nothing to tell is only moved, at a tenth of the cost.
	noticeCost, moveCost = 10, 1
	burstCost            = burst * noticeCost
	roundCost            = int(again/pause) * burstCost
)

// told is a flow that is told.
type told struct {
	orig  packet.Tuple
	addr  packet.Addr // from which it leaves
	owner uint64
	times int // how often it was told since the gateway of addr changed
	nth   int // among its owner's
}

// rounds says which flow is told when. A round takes as long as again at most. While some address has not settled, half
// of it is for repeating what was told first, so that whoever has few flows has them repeated however many another one
// has; the other half goes on where the round before ended. Then the last round tells all of them once more, or for the
// first time, in whatever time that takes.
type rounds struct {
	since map[packet.Addr]time.Time // by address: when its gateway changed
	list  []told
	// done is how many of list were told since the change, or in the last round. first is how many of those are
	// repeated in this round, and repeated how many were.
	done, first, repeated int
	last                  bool
	spent                 int // in this round
	began                 time.Time
}

// begin begins anew, with the flows of all addresses in since.
func (r *rounds) begin(list []told, now time.Time) {
	*r = rounds{since: r.since, list: list, began: now}
}

// said returns how often flows were told. What was told before the gateway of their address changed, perhaps now, does
// not count.
func (r *rounds) said(now time.Time) map[packet.Tuple]int {
	times := map[packet.Tuple]int{}
	for i := range r.list {
		if f := &r.list[i]; f.times > 0 && r.since[f.addr].Before(now) {
			times[f.orig] = f.times
		}
	}
	return times
}

// next returns the next flow of this round, nil when the round is over. The caller says by spend what it cost.
func (r *rounds) next() *told {
	repeats := roundCost
	if r.done < len(r.list) {
		repeats = roundCost / 2
	}
	var f *told
	switch {
	case r.repeated < r.first && r.spent < repeats:
		f = &r.list[r.repeated]
		r.repeated++
	case r.done < len(r.list) && (r.spent < roundCost || r.last):
		f = &r.list[r.done]
		r.done++
	default:
		return nil
	}
	f.times++
	return f
}

func (r *rounds) spend(cost int) { r.spent += cost }

// over notes that the round is over, and returns how long after now the next one begins; ok is false when there is
// none.
func (r *rounds) over(now time.Time) (wait time.Duration, ok bool) {
	if r.last || len(r.since) == 0 {
		*r = rounds{since: r.since}
		clear(r.since)
		return 0, false
	}
	return max(0, r.began.Add(again).Sub(now)), true
}

// anew begins the next round.
func (r *rounds) anew(now time.Time) {
	r.last = true
	for _, at := range r.since {
		r.last = r.last && now.Sub(at) >= settled
	}
	if r.last {
		r.done = 0
	}
	r.first, r.repeated, r.spent, r.began = r.done, 0, 0, now
}
