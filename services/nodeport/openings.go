package nodeport

import (
	"context"
	"io"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"tapestry.dev/tapestry/share"
)

// brief is how long an opening counts at most. One that takes longer waits for its backend and takes no processor, and
// a backend that never answers must not hold up others.
const brief = 5 * time.Millisecond

// mostOpening is how many connections to backends are opened at once. With that many the processors are busy; with more
// the goroutine that accepts clients would wait behind them.
func mostOpening() int { return 2 * runtime.GOMAXPROCS(0) }

// openings lets clients have connections to backends opened in turn. To open one costs twenty times as much as to
// accept a client, and a client that resets at once makes any number of them necessary. So whoever is accepted waits
// until it is his client's turn, and is looked at once more then: for a client that is gone nothing is opened.
type openings struct {
	waiting *share.Limit[netip.Prefix, *arrival] // those who wait, each with a descriptor

	mu   sync.Mutex // guards what follows
	free int
	line share.Line[netip.Prefix, *arrival]
}

// arrival is an accepted client that waits for its turn, or has it.
type arrival struct {
	openings *openings
	conn     io.Closer
	claim    share.Claim[netip.Prefix, *arrival]
	place    share.Place[netip.Prefix, *arrival]
	turn     chan bool // gets true when it is the client's turn, false when the client lost its place

	// The mutex of the openings guards what follows.
	has, left bool        // it has its turn, or had it; it has called leave
	late      *time.Timer // ends the turn
}

func newOpenings(most int) *openings {
	return &openings{waiting: share.New[netip.Prefix, *arrival](share.Options[netip.Prefix]{Total: most}), free: mostOpening()}
}

// admit puts a client into the line, or gives it its turn at once. When too many wait, the client with the most of them
// loses the one that has waited for longest, whose connection is reset. It returns nil, and leaves conn to the caller,
// when there is no place.
func (o *openings) admit(conn io.Closer, owner netip.Prefix) *arrival {
	a := &arrival{openings: o, conn: conn, turn: make(chan bool, 1)}
	a.claim.Value, a.place.Value = a, a
	o.mu.Lock()
	lost, ok := o.waiting.Acquire(&a.claim, owner)
	switch {
	case !ok:
	case o.free > 0:
		o.free--
		a.begin()
	default:
		o.line.Add(&a.place, owner)
	}
	o.mu.Unlock()
	if lost != nil {
		lost.Value.lose()
	}
	if !ok {
		return nil
	}
	return a
}

// begin gives a its turn. The mutex of its openings is held, and a is not in the line.
func (a *arrival) begin() {
	a.openings.waiting.Release(&a.claim)
	a.has = true
	a.turn <- true
}

// lose takes a, which has lost its claim, out of the line and resets its connection. If its turn has come meanwhile, it
// keeps that.
func (a *arrival) lose() {
	o := a.openings
	o.mu.Lock()
	waited := o.line.Remove(&a.place)
	o.mu.Unlock()
	if waited {
		abort(a.conn)
		a.turn <- false
	}
}

// wait waits for the client's turn, which ends with leave, or by itself after a time. It returns false when the client
// has lost its place, or ctx ends. leave must be called in any case.
func (a *arrival) wait(ctx context.Context) bool {
	select {
	case ok := <-a.turn:
		a.openings.mu.Lock()
		defer a.openings.mu.Unlock()
		if ok && !a.left {
			a.late = time.AfterFunc(brief, a.leave)
		}
		return ok
	case <-ctx.Done():
		return false
	}
}

// leave ends the turn, or the waiting for it. Further calls do nothing.
func (a *arrival) leave() {
	o := a.openings
	o.mu.Lock()
	defer o.mu.Unlock()
	if a.left {
		return
	}
	a.left = true
	if a.late != nil {
		a.late.Stop()
	}
	if !a.has {
		o.line.Remove(&a.place)
		o.waiting.Release(&a.claim)
		return
	}
	if next := o.line.Next(); next != nil {
		next.Value.begin()
		return
	}
	o.free++
}
