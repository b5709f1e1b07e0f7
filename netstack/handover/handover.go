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
// Flows are told at 10,000 a second at most. The owners of flows take turns, so a pod with many flows keeps others
// waiting for no longer than it takes to tell as many of theirs. Flows that neither end has anything to say about, such
// as closed ones, are left out.
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

const (
	// again is the time between two rounds of the flows of an address, and settled is how long after a change of its
	// gateway the last round begins. Gateways change by beats, eight of which come in a second.
	again, settled = 250 * time.Millisecond, 2 * time.Second
	// burst is how many flows are told at once, and pause is the time from one burst to the next.
	burst, pause = 100, 10 * time.Millisecond
)

// Options says what a Handover works on. All are required.
type Options struct {
	Flows *flow.Table
	// Exits returns how pods leave now; nil while nothing leaves as a packet.
	Exits func() *exit.Table
	// Tell moves the flow with the original tuple orig to its gateway if it is another one's, and tells that of it.
	// Where there is no such flow any more, or it does not wait or has no gateway now, it does nothing. orig is
	// borrowed.
	Tell func(orig *packet.Tuple)
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
	since := map[packet.Addr]time.Time{} // by address: when its gateway changed
	h.Changed()
	for {
		var next <-chan time.Time
		if len(since) > 0 {
			next = time.After(again)
		}
		select {
		case <-ctx.Done():
			return
		case <-h.changed:
		case <-next:
		}
		now, table := h.o.Now(), h.o.Exits()
		for _, a := range table.Moved(known) {
			since[a] = now
		}
		known = table
		h.round(ctx, since)
		for a, at := range since {
			if now.Sub(at) >= settled {
				delete(since, a)
			}
		}
	}
}

// round tells all flows of the addresses once.
func (h *Handover) round(ctx context.Context, since map[packet.Addr]time.Time) {
	if len(since) == 0 {
		return
	}
	for i, f := range h.flows(since) {
		if i%burst == burst-1 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
		h.o.Tell(&f.orig)
	}
}

// told is a flow that is told.
type told struct {
	orig packet.Tuple
	nth  uint32 // of its owner
}

// flows returns the flows of the addresses, the first of each owner before the second of any.
func (h *Handover) flows(of map[packet.Addr]time.Time) (list []told) {
	owned := map[uint64]uint32{}
	h.o.Flows.Range(func(e *flow.Entry, info flow.Info) bool {
		// A flow that came in by a space is another node's pod's, and that node tells it.
		if _, ok := of[e.Reply.Dst]; ok && e.Orig.Space == 0 && e.Reply.Space != 0 && Waits(info.State) {
			list = append(list, told{e.Orig, owned[e.Owner]})
			owned[e.Owner]++
		}
		return true
	})
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
