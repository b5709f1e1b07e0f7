// Package fragment remembers the ways of first fragments for the later ones. A later fragment carries no ports, so its
// flow cannot be found from itself. Fragmented datagrams are rare: TCP does not fragment, and a pod's UDP only above
// its MTU. A later fragment that overtakes its first has no known way (RFC 4787 REQ-14 lets it be dropped).
//
// Package share shares out the room among the senders of first fragments. When there is no room, a sender who has the
// most gives way to those with fewer; otherwise a sender replaces its own oldest datagram.
package fragment

import (
	"sync"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

// life is how long a way is remembered. RFC 791's reassembly timeout is 15 s, that of Linux 30 s.
const life = 30 * time.Second

// Way is what a fragmented packet becomes by translation, and where its flow sends it (flow.Entry.Via).
type Way struct {
	To  packet.Tuple
	Via uint64
}

// Options configures a Table.
type Options struct {
	// Max is how many datagrams are remembered at once, at least 1.
	Max int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Table remembers ways. Its methods are safe for concurrent use. It allocates only when it holds more datagrams than
// ever before.
type Table struct {
	now   func() time.Time
	share *share.Limit[uint64, *datagram]

	mu    sync.Mutex // guards the fields below
	known map[key]*datagram
	spare []*datagram
}

// key names a datagram by what all its fragments have in common (RFC 791 3.2, RFC 8200 4.5), and by their space.
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

// New returns an empty Table.
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

// Remember stores the way of a datagram, whose first fragment arrived with the tuple and the identification id, and
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

// room returns a datagram that holds a unit of owner's, nil when there is none to be had.
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

// Find returns the way of a later fragment with this tuple and identification.
func (t *Table) Find(tuple *packet.Tuple, id uint32) (Way, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.known[keyOf(tuple, id)]
	if d == nil || !d.end.After(t.now()) {
		return Way{}, false
	}
	return d.way, true
}
