package nodeport

import (
	"container/list"
	"net/netip"
	"sync"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/share"
)

// guests shares out the UDP sessions of all sockets among clients. When the limit is exceeded, the client with the
// most sessions loses the one that was idle for longest. If no client has two, the session that was idle for longest
// of all ends: a busy Service may have more clients in two minutes than there are sessions, and most of those clients
// are gone.
type guests struct {
	limit *share.Limit[netip.Prefix, *session]

	mu    sync.Mutex // guards order
	order *list.List // of *session; front: idle for longest
}

func newGuests(most int) *guests {
	return &guests{limit: share.New[netip.Prefix, *session](share.Options[netip.Prefix]{Total: most}), order: list.New()}
}

// admit gives sess a place, unless it has ended already. It returns the session that lost its place, or nil if none
// did.
func (g *guests) admit(sess *session) (lost *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if sess.left {
		return nil
	}
	sess.claim.Value = sess
	owner := addressing.Client(sess.key.client.Addr())
	claim, ok := g.limit.Acquire(&sess.claim, owner)
	switch {
	case claim != nil:
		lost = claim.Value
	case !ok:
		lost = g.order.Front().Value.(*session) // not nil, since all places are taken
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

// touch records that the client sent something.
func (g *guests) touch(sess *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if sess.element != nil {
		g.order.MoveToBack(sess.element)
		g.limit.Touch(&sess.claim)
	}
}

// leave gives up the session's place, if it has one, for good.
func (g *guests) leave(sess *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	sess.left = true
	if sess.element != nil {
		g.order.Remove(sess.element)
		sess.element = nil
		g.limit.Release(&sess.claim)
	}
}
