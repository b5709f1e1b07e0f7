// Package fragment finds the ways of later fragments, which carry no ports and so belong to no flow by themselves: they
// go where their first fragment went. One that overtook its first waits for it (RFC 4787 REQ-14). Datagrams in
// fragments are rare: TCP does not fragment, and a pod's UDP only above its MTU.
//
// Package share divides the room among the senders, for ways and for fragments that wait: a sender of more than fit
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
	// MaxWaiting is how many fragments wait at once, at least 1. Each takes as many bytes as it has, Longest at most.
	MaxWaiting int
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Table has the ways, and the fragments that wait for one. Its methods are safe for concurrent use. It allocates for no
// more datagrams and fragments than it has had at once.
type Table struct {
	now   func() time.Time
	share *share.Limit[uint64, *datagram]
	queue *share.Limit[uint64, *piece]

	mu     sync.Mutex // guards below
	known  map[key]*datagram
	spare  []*datagram
	wait   map[key]*piece // the newest of each datagram
	unused []*piece
	lost   uint64 // pieces that waited in vain
}

// key names a datagram: whatever its fragments have in common (RFC 791 3.2, RFC 8200 4.5), within their space, and who
// is charged for them.
type key struct {
	src, dst packet.Addr
	owner    uint64
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
		now: o.Now, known: map[key]*datagram{}, wait: map[key]*piece{},
		share: share.New[uint64, *datagram](share.Options[uint64]{Total: o.Max}),
		queue: share.New[uint64, *piece](share.Options[uint64]{Total: o.MaxWaiting}),
	}
}

func keyOf(t *packet.Tuple, id uint32, owner uint64) key {
	k := key{t.Src, t.Dst, owner, id, t.Space, t.Proto}
	if !t.Src.Is4() {
		k.proto = 0 // later fragments may name another protocol than the first (RFC 8200 4.5)
	}
	return k
}

// Remember keeps the way of the datagram whose first fragment arrived with this tuple and identification, and charges
// it to owner. It reports whether later fragments wait for the way; Next returns those.
func (t *Table) Remember(tuple *packet.Tuple, id uint32, owner uint64, w Way) (waiting bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := keyOf(tuple, id, owner)
	d := t.known[k]
	if d == nil {
		if d = t.room(owner); d == nil {
			return false
		}
		d.key = k
		t.known[k] = d
	}
	d.way, d.end = w, t.now().Add(life)
	return t.wait[k] != nil
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

// find returns the way of a datagram, and whether it is known. The caller holds mu.
func (t *Table) find(k key) (Way, bool) {
	d := t.known[k]
	if d == nil || !d.end.After(t.now()) {
		return Way{}, false
	}
	return d.way, true
}
