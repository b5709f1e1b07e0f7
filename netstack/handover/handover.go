// Package handover brings the flows of egress addresses to their next gateway.
//
// A flow that leaves from an egress address is known to two nodes: that of its pod and the gateway. When another node
// becomes the gateway, the first packet of the pod brings the flow there. But a pod that only waits sends none, and
// what the server sends to the next gateway meets no flow. So the node of the pod looks through its flows once the
// gateway has changed. It moves those of the address, and tells the next gateway of each.
//
// What is told may be lost: a node may hear a moment before the next gateway itself that it is the one. So it is told
// again, every 250 ms for two seconds, and once more after that. No answer is waited for, since a pod that has
// something to say needs none of this.
//
// # Shares
//
// Flows are told at 10,000 a second at most, and those that are only moved, since there is no notice of their protocol
// or this node is the gateway, count as a tenth of one. The owners of flows take turns, so a pod with many flows keeps
// others waiting for no longer than it takes to tell as many of theirs. Nor does it take the repetitions from them:
// what was told first is repeated while the rest is still told (rounds). Each change of a gateway begins anew, but with
// those of an owner's flows that were told the least: one that changes without a pause keeps nobody waiting either.
// After that a Handover rests, since to look for the flows takes 0.17 s where there are 200,000. Flows that neither end
// has anything to say about, such as closed ones, are left out.
package handover

import (
	"cmp"
	"context"
	"slices"
	"time"

	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// Options says what a Handover works on. All are required.
type Options struct {
	Flows *flow.Table
	// Exits returns how pods leave now; nil while nothing leaves as a packet.
	Exits func() *exit.Table
	// Tell moves the flow with the original tuple orig to its gateway if it is another one's, and tells that of it. It
	// reports whether it has told something. Where there is no such flow any more, or it does not wait or has no
	// gateway now, it does nothing. orig is borrowed.
	Tell func(orig *packet.Tuple) bool
	// Now is a monotonic clock.
	Now func() time.Time
}

// Handover hands over the flows of one node.
type Handover struct {
	o       Options
	changed chan struct{}
}

// New makes a Handover, which does nothing before Run.
func New(o Options) *Handover { return &Handover{o: o, changed: make(chan struct{}, 1)} }

// Changed says that Exits returns another table. It never blocks.
func (h *Handover) Changed() {
	select {
	case h.changed <- struct{}{}:
	default: // it will be looked at anyway
	}
}

// Run hands over the flows of addresses whose gateway changes, until ctx is done. Those of the table that it finds
// first are handed over as well: the process before may have died amid of it.
func (h *Handover) Run(ctx context.Context) {
	var known *exit.Table
	var wait <-chan time.Time // until there is something to tell; nil while there is not
	r, over := rounds{since: map[packet.Addr]time.Time{}}, true
	changed := h.changed // nil while it rests
	var rested <-chan time.Time
	h.Changed()
	for {
		select {
		case <-ctx.Done():
			return
		case <-rested:
			changed = h.changed
			continue
		case <-changed:
			now, table := h.o.Now(), h.o.Exits()
			moved := table.Moved(known)
			known = table
			if len(moved) == 0 {
				continue
			}
			for _, a := range moved {
				r.since[a] = now
			}
			r.begin(h.flows(r.since, r.said(now)), now)
			changed, rested = nil, time.After(restFactor*h.o.Now().Sub(now))
		case <-wait:
			if over {
				r.anew(h.o.Now())
			}
		}
		wait = nil
		if over = !h.burst(&r); !over {
			wait = time.After(pause)
		} else if d, more := r.over(h.o.Now()); more {
			wait = time.After(d)
		}
	}
}

// burst tells as many flows as may be told at once, and reports whether the round has more of them.
func (h *Handover) burst(r *rounds) bool {
	for cost := 0; cost < burstCost; {
		f := r.next()
		if f == nil {
			return false
		}
		c := moveCost
		if h.o.Tell(&f.orig) {
			c = noticeCost
		}
		r.spend(c)
		cost += c
	}
	return true
}

// flows returns the flows of the addresses, the first of each owner before the second of any. Of an owner's flows those
// come first of which said, how often each was told, says the least: while gateways change all the time, each is told
// at some time.
func (h *Handover) flows(of map[packet.Addr]time.Time, said map[packet.Tuple]int) (list []told) {
	list = make([]told, 0, len(said))
	h.o.Flows.Range(func(e *flow.Entry, info flow.Info) bool {
		// A flow that came in by a space is another node's pod's, and that node tells it.
		if _, ok := of[e.Reply.Dst]; ok && e.Orig.Space == 0 && e.Reply.Space != 0 && Waits(info.State) {
			list = append(list, told{orig: e.Orig, addr: e.Reply.Dst, owner: e.Owner, times: said[e.Orig]})
		}
		return true
	})
	slices.SortStableFunc(list, func(a, b told) int { return cmp.Compare(a.times, b.times) })
	owned := map[uint64]int{}
	for i := range list {
		f := &list[i]
		f.nth = owned[f.owner]
		owned[f.owner]++
	}
	slices.SortStableFunc(list, func(a, b told) int { return cmp.Compare(a.nth, b.nth) })
	return list
}

// Waits reports whether the end that opened a flow in this state may be waiting for the other one, without having
// anything to say itself.
func Waits(s flow.State) bool {
	switch s {
	case flow.Established, flow.FinOriginal, flow.Replied, flow.Other:
		return true
	}
	return false
}
