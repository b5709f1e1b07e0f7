package nodeport

import (
	"container/list"
	"net/netip"
	"sync"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/share"
)

// guests share out the UDP sessions of all sockets among clients: with one more than there may be, the client with the
// most loses its own that was idle for longest. Where no client has two, the one goes that was idle for longest of all:
// a busy Service has more clients in two minutes than sessions, and most of them have gone.
type guests struct {
	limit *share.Limit[netip.Prefix, *session]

	mu    sync.Mutex // guards order
	order *list.List // of *session; front: idle for longest
}

func newGuests(most int) *guests {
	return &guests{limit: share.New[netip.Prefix, *session](share.Options[netip.Prefix]{Total: most}), order: list.New()}
}

// admit gives a session a place, and the session that lost it, if one did.
func (g *guests) admit(sess *session) (lost *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	sess.claim.Value = sess
	owner := addressing.Client(sess.key.client.Addr())
	claim, ok := g.limit.Acquire(&sess.claim, owner)
	switch {
	case claim != nil:
		lost = claim.Value
	case !ok:
		lost = g.order.Front().Value.(*session) // there is one: all places are taken
		g.limit.Release(&lost.claim)
		g.limit.Acquire(&sess.claim, owner)
	}
	if lost != nil {
		g.order.Remove(lost.element)
		lost.element = nil
	}
	sess.element = g.order.PushBack(sess)
	return lost
}

// touch notes that the client said something.
func (g *guests) touch(sess *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if sess.element != nil {
		g.order.MoveToBack(sess.element)
		g.limit.Touch(&sess.claim)
	}
}

// leave gives up a session's place, if it has one.
func (g *guests) leave(sess *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if sess.element != nil {
		g.order.Remove(sess.element)
		sess.element = nil
		g.limit.Release(&sess.claim)
	}
}
