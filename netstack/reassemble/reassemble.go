// Package reassemble puts the fragments of IP packets together that pods send to the outside: a host socket takes whole
// datagrams.
//
// What is incomplete is kept for a while in memory that is bounded and shared out among the senders by package share:
// who sends more first fragments than there is room for loses its own, and nobody else's.
//
// A fragment that overlaps another one in part says that somebody plays tricks, and its packet is given up (RFC 5722,
// and Linux for IPv4, too). One that came twice is left out (RFC 8200 4.5).
package reassemble

import (
	"bytes"
	"sync"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

const (
	// life is how long a packet may be incomplete, from its first fragment on: Linux' net.ipv4.ipfrag_time. RFC 8200 4.5
	// says 60 s.
	life = 30 * time.Second
	// headroom has room for the header of an IPv4 packet with options, and for one of IPv6 with a few.
	headroom = 128
	// unit is what fragments but for the last are multiples of.
	unit = 8
	most = 65535
)

// Options are what a Table needs.
type Options struct {
	// Max is how many packets may be incomplete at once, at least 1. Each takes 72 KiB.
	Max int
	// Owner says who is charged for the packets of a source address; nil: each address by itself.
	Owner func(packet.Addr) packet.Addr
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Table has the incomplete packets. Its methods are safe for concurrent use.
type Table struct {
	now   func() time.Time
	owner func(packet.Addr) packet.Addr
	share *share.Limit[packet.Addr, *whole]

	mu    sync.Mutex // guards below
	known map[key]*whole
	spare []*whole
}

// key names a packet: whatever its fragments have in common.
type key struct {
	src, dst packet.Addr
	id       uint32
	proto    packet.Proto
}

// whole is a packet that comes to be.
type whole struct {
	key
	end   time.Time
	claim share.Claim[packet.Addr, *whole]

	buf  [headroom + most + unit]byte // what was fragmented, from headroom on; before it the header, at the end of that room
	head int                          // length of the header, 0 until the first fragment came
	size int                          // of what was fragmented, 0 until the last fragment came
	got  int                          // bytes of it that are there
	have [(most + unit) / unit]bool   // which units are
}

// New makes an empty Table.
func New(o Options) *Table {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Owner == nil {
		o.Owner = func(a packet.Addr) packet.Addr { return a }
	}
	return &Table{
		now: o.Now, owner: o.Owner, known: map[key]*whole{},
		share: share.New[packet.Addr, *whole](share.Options[packet.Addr]{Total: o.Max}),
	}
}

// Stats tells who has how many.
func (t *Table) Stats() share.Stats { return t.share.Stats() }

// Add takes a fragment, which is borrowed, and calls done with the packet when it is complete; done borrows it. It is
// charged to its source address's owner.
func (t *Table) Add(p *packet.Packet, done func(ip []byte)) {
	w := t.add(p)
	if w == nil {
		return
	}
	done(w.ip())
	t.mu.Lock()
	t.spare = append(t.spare, w)
	t.mu.Unlock()
}

// add gives the packet that is complete by p and no longer in the Table, nil when none is.
func (t *Table) add(p *packet.Packet) *whole {
	k := key{p.Tuple.Src, p.Tuple.Dst, p.FragID, p.Tuple.Proto}
	if p.EtherType == packet.EtherIPv6 {
		k.proto = 0 // later fragments may name another one (RFC 8200 4.5)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	w := t.known[k]
	if w != nil && now.After(w.end) {
		t.forget(w)
		w = nil
	}
	if w == nil {
		if w = t.begin(k); w == nil {
			return nil
		}
		w.end = now.Add(life)
	}
	if !w.take(p) {
		t.forget(w)
		return nil
	}
	if !w.complete() {
		return nil
	}
	delete(t.known, w.key)
	t.share.Release(&w.claim)
	return w
}

// begin enters a packet of which nothing is there yet. The caller holds mu.
func (t *Table) begin(k key) *whole {
	var w *whole
	if n := len(t.spare); n > 0 {
		w, t.spare = t.spare[n-1], t.spare[:n-1]
	} else {
		w = new(whole)
		w.claim.Value = w
	}
	w.key, w.head, w.size, w.got = k, 0, 0, 0
	clear(w.have[:])
	lost, ok := t.share.Acquire(&w.claim, t.owner(k.src))
	if lost != nil {
		delete(t.known, lost.Value.key)
		t.spare = append(t.spare, lost.Value)
	}
	if !ok {
		t.spare = append(t.spare, w)
		return nil
	}
	t.known[k] = w
	return w
}

// forget gives up an incomplete packet. The caller holds mu.
func (t *Table) forget(w *whole) {
	delete(t.known, w.key)
	t.share.Release(&w.claim)
	t.spare = append(t.spare, w)
}

// take takes a fragment. It is false when the packet cannot become one.
func (w *whole) take(p *packet.Packet) bool {
	f := p.Piece()
	end := f.At + len(f.Data)
	if end > most || w.size > 0 && (end > w.size || !f.More && end != w.size) {
		return false
	}
	first, last := f.At/unit, (end+unit-1)/unit
	there := 0
	for _, has := range w.have[first:last] {
		if has {
			there++
		}
	}
	switch {
	case there == last-first:
		return bytes.Equal(w.buf[headroom+f.At:headroom+end], f.Data) // it came twice, or is somebody else's
	case there > 0:
		return false
	}
	if !f.More {
		for _, beyond := range w.have[last:] {
			if beyond {
				return false
			}
		}
		w.size = end
	}
	copy(w.buf[headroom+f.At:], f.Data)
	w.got += len(f.Data)
	for i := first; i < last; i++ {
		w.have[i] = true
	}
	if p.Frag == packet.FirstFrag {
		var head [headroom]byte
		w.head = p.PutWholeHead(head[:])
		if w.head == 0 {
			return false
		}
		copy(w.buf[headroom-w.head:], head[:w.head])
	}
	return !w.complete() || packet.PutLength(w.ip())
}

func (w *whole) complete() bool { return w.head > 0 && w.size > 0 && w.got == w.size }

func (w *whole) ip() []byte { return w.buf[headroom-w.head : headroom+w.size] }
