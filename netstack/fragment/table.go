// Package fragment remembers the way of first fragments for the later ones, which carry no ports and so belong to no
// flow by themselves. Datagrams in fragments are rare: TCP does not fragment, and a pod's UDP only above its MTU. A
// later fragment that overtook its first is not known (RFC 4787 REQ-14 lets it be dropped).
//
// The room is shared out by package share among those who send the first fragments: whoever sends more than fit
// replaces its own, and when there is no room, whoever has the most there makes room for the others.
package fragment

import (
	"sync"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

// life is how long a way is known: RFC 791's reassembly timeout is 15 s, Linux' is 30 s.
const life = 30 * time.Second

// Way is what a fragmented packet becomes by translation, and where its flow sends it.
type Way struct {
	To  packet.Tuple
	Via uint64
}

// Options are what a Table needs.
type Options struct {
	// Max is how many datagrams are known at once, at least 1.
	Max int
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Table has the ways. Its methods are safe for concurrent use. It allocates for no more datagrams than it has known at
// once.
type Table struct {
	now   func() time.Time
	share *share.Limit[uint64, *datagram]

	mu    sync.Mutex // guards below
	known map[key]*datagram
	spare []*datagram
}

// key names a datagram: whatever fragments have in common (RFC 791 3.2, RFC 8200 4.5), within their space.
type key struct {
	src, dst packet.Addr
	id       uint32
	space    uint32
	proto    packet.Proto
}

type datagram struct {
	key
	way   Way
	end   time.Time
	claim share.Claim[uint64, *datagram]
}

// New makes an empty Table.
func New(o Options) *Table {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Table{
		now: o.Now, known: map[key]*datagram{},
		share: share.New[uint64, *datagram](share.Options[uint64]{Total: o.Max}),
	}
}

func keyOf(t *packet.Tuple, id uint32) key { return key{t.Src, t.Dst, id, t.Space, t.Proto} }

// Remember keeps the way of the datagram whose first fragment arrived with the tuple t and this identification, and
// charges it to owner.
func (t *Table) Remember(tuple *packet.Tuple, id uint32, owner uint64, w Way) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := keyOf(tuple, id)
	d := t.known[k]
	if d == nil {
		if d = t.room(owner); d == nil {
			return
		}
		d.key = k
		t.known[k] = d
	}
	d.way, d.end = w, t.now().Add(life)
}

// room gives a datagram that holds a unit of owner's, nil when there is none to be had.
func (t *Table) room(owner uint64) *datagram {
	var d *datagram
	if n := len(t.spare); n > 0 {
		d, t.spare = t.spare[n-1], t.spare[:n-1]
	} else {
		d = &datagram{}
		d.claim.Value = d
	}
	lost, ok := t.share.Acquire(&d.claim, owner)
	if lost != nil {
		delete(t.known, lost.Value.key)
		t.spare = append(t.spare, lost.Value)
	}
	if !ok {
		t.spare = append(t.spare, d)
		return nil
	}
	return d
}

// Find gives the way of a later fragment with this tuple and identification.
func (t *Table) Find(tuple *packet.Tuple, id uint32) (Way, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.known[keyOf(tuple, id)]
	if d == nil || !d.end.After(t.now()) {
		return Way{}, false
	}
	return d.way, true
}
