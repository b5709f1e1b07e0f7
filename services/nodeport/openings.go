package nodeport

import (
	"context"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"tapestry.dev/tapestry/share"
)

// brief is how long an opening counts at most. One that takes longer waits for its backend and takes no processor, and
// a backend that never answers must not hold up others.
const brief = 5 * time.Millisecond

// mostOpening is how many connections to backends are opened at once. With that many the processors are busy; with more
// whoever accepts clients would wait behind them.
func mostOpening() int { return 2 * runtime.GOMAXPROCS(0) }

// openings lets clients have connections to backends opened in turn. To open one costs twenty times as much as to
// accept a client, and a client that resets at once makes any number of them necessary. So whoever is accepted waits
// until it is his client's turn, and is looked at once more then: for a client that is gone nothing is opened.
type openings struct {
	waiting *share.Limit[netip.Prefix, *arrival] // those who wait, each with a descriptor

	mu    sync.Mutex // guards what follows
	most  int        // turns at once
	line  share.Line[netip.Prefix, *arrival]
	turns []*arrival  // those that have their turn, the one that has had it for longest first
	late  *time.Timer // ends turns that take too long; it runs while somebody waits
}

// arrival is an accepted client that waits for its turn, or has it.
type arrival struct {
	openings *openings
	conn     io.Closer
	claim    share.Claim[netip.Prefix, *arrival]
	place    share.Place[netip.Prefix, *arrival]
	turn     chan bool // gets true when it is the client's turn, false when the client lost its place

	// The mutex of the openings guards what follows.
	has, left bool      // it has its turn, or had it; it has left
	since     time.Time // when its turn began
}

func newOpenings(most int) *openings {
	return &openings{waiting: share.New[netip.Prefix, *arrival](share.Options[netip.Prefix]{Total: most}), most: mostOpening()}
}

// admit puts a client into the line, or gives it its turn at once. When too many wait, the client with the most of them
// loses the one that has waited for longest, whose connection is reset. It returns nil, and leaves conn to the caller,
// when there is no place.
func (o *openings) admit(conn io.Closer, owner netip.Prefix) *arrival {
	a := &arrival{openings: o, conn: conn, turn: make(chan bool, 1)}
	a.claim.Value, a.place.Value = a, a
	o.mu.Lock()
	lost, ok := o.waiting.Acquire(&a.claim, owner)
	if ok {
		o.line.Add(&a.place, owner)
		o.serve()
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

// serve gives those in the line their turns, as far as there are any left. Turns that take too long end. The mutex is
// held.
func (o *openings) serve() {
	now := time.Now()
	for o.line.Len() > 0 {
		if len(o.turns) == o.most {
			if wait := brief - now.Sub(o.turns[0].since); wait > 0 {
				o.alarm(wait)
				return
			}
			o.turns[0].end()
		}
		o.line.Next().Value.begin(now)
	}
}

// alarm has serve called after d. The mutex is held.
func (o *openings) alarm(d time.Duration) {
	if o.late != nil {
		o.late.Reset(d)
		return
	}
	o.late = time.AfterFunc(d, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.serve()
	})
}

// begin gives a its turn. The mutex of its openings is held, and a is not in the line.
func (a *arrival) begin(now time.Time) {
	o := a.openings
	o.waiting.Release(&a.claim)
	a.has, a.since = true, now
	o.turns = append(o.turns, a)
	a.turn <- true
}

// end ends the turn of a. The mutex of its openings is held.
func (a *arrival) end() {
	o := a.openings
	a.left = true
	i := slices.Index(o.turns, a) // there are few
	o.turns = slices.Delete(o.turns, i, i+1)
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

// now reports whether the client's turn has come already.
func (a *arrival) now() bool {
	a.openings.mu.Lock()
	defer a.openings.mu.Unlock()
	return a.has
}

// uses begins the time of a turn anew, since whoever has it may have waited for a processor.
func (a *arrival) uses() {
	o := a.openings
	o.mu.Lock()
	defer o.mu.Unlock()
	if i := slices.Index(o.turns, a); i >= 0 {
		o.turns = append(slices.Delete(o.turns, i, i+1), a)
		a.since = time.Now()
	}
}

// wait waits for the client's turn, which ends with leave, or by itself after a time if others wait. It returns false
// when the client has lost its place, or ctx ends. leave must be called in any case.
func (a *arrival) wait(ctx context.Context) bool {
	select {
	case ok := <-a.turn:
		if ok {
			a.uses()
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
	switch {
	case a.left:
	case a.has:
		a.end()
		o.serve()
	default:
		a.left = true
		o.line.Remove(&a.place)
		o.waiting.Release(&a.claim)
	}
}
