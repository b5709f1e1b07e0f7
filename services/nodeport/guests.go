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
// are gone. A client that spoke again after an answer has heard it, so its address is its own; such sessions end only
// when there are no others, so that a flood from made-up addresses takes its places from itself.
type guests struct {
	limit *share.Limit[netip.Prefix, *session]

	mu               sync.Mutex // guards what follows
	strangers, known list.List  // of *session; front: idle for longest; known: the client spoke again after an answer
}

func newGuests(most int) *guests {
	return &guests{limit: share.New[netip.Prefix, *session](share.Options[netip.Prefix]{Total: most})}
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
		longest := g.strangers.Front()
		if longest == nil {
			longest = g.known.Front() // not nil, since all places are taken
		}
		lost = longest.Value.(*session)
		g.limit.Release(&lost.claim)
		g.limit.Acquire(&sess.claim, owner)
	}
	if lost != nil {
		g.remove(lost)
	}
	sess.element = g.strangers.PushBack(sess)
	return lost
}

// remove takes sess, which has a place, out of its list. The caller holds mu.
func (g *guests) remove(sess *session) {
	if sess.isKnown {
		g.known.Remove(sess.element)
	} else {
		g.strangers.Remove(sess.element)
	}
	sess.element = nil
}

// touch records that the client sent something.
func (g *guests) touch(sess *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if sess.element == nil {
		return
	}
	switch {
	case sess.isKnown:
		g.known.MoveToBack(sess.element)
	case sess.heard.Load():
		g.remove(sess)
		sess.element, sess.isKnown = g.known.PushBack(sess), true
	default:
		g.strangers.MoveToBack(sess.element)
	}
	g.limit.Touch(&sess.claim)
}

// leave gives up the session's place, if it has one, for good.
func (g *guests) leave(sess *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	sess.left = true
	if sess.element != nil {
		g.remove(sess)
		g.limit.Release(&sess.claim)
	}
}
