// Package reassemble reassembles IP packets that come in fragments and are needed whole: those that pods send to the
// outside, since a host socket accepts only whole datagrams, and those that another node cut for a narrow path.
//
// Incomplete packets are kept for a while in bounded memory, which package share divides among the senders: a sender of
// more first fragments than there is room for loses its own packets only.
//
// A packet with fragments that overlap in part is dropped as an attack (RFC 5722; Linux does so for IPv4, too). A
// repeated fragment is ignored (RFC 8200 4.5).
package reassemble

import (
	"bytes"
	"cmp"
	"sync"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

const (
	// life is how long a packet may be incomplete, counted from its first fragment. It is net.ipv4.ipfrag_time of
	// Linux; RFC 8200 4.5 says 60 s.
	life = 30 * time.Second
	// headroom is room for the header of an IPv4 packet with options, or of an IPv6 packet with a few extension
	// headers.
	headroom = 128
	// unit is the number of bytes of which every fragment but the last is a multiple.
	unit = 8
	most = 65535 // bytes of an IP packet
)

// Options of a Table.
type Options struct {
	// Max is how many packets may be incomplete at once, at least 1. Each takes Longest bytes and an eighth of that.
	Max int
	// Longest is how many bytes the fragmented part of a packet has at most; a longer packet is lost. 0: any IP packet.
	Longest int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Table holds the incomplete packets. Its methods are safe for concurrent use.
type Table struct {
	now     func() time.Time
	longest int
	share   *share.Limit[packet.Addr, *whole]

	mu    sync.Mutex // guards what follows
	known map[key]*whole
	spare []*whole
}

// key identifies a packet: it is what all its fragments have in common, and who is charged for them.
type key struct {
	src, dst packet.Addr
	owner    packet.Addr
	id       uint32
	proto    packet.Proto
}

// whole is a packet that is being reassembled.
type whole struct {
	key
	end   time.Time
	claim share.Claim[packet.Addr, *whole]

	buf  []byte // the fragmented data from headroom on, and the header just before it
	head int    // length of the header; 0 until the first fragment has come
	size int    // length of the data; 0 until the last fragment has come
	got  int    // bytes of data that have come
	have []bool // which units have come; as many as the longest packet has
	ce   bool   // a fragment has met congestion, and so has the packet (RFC 3168 5.3)
}

// New makes an empty Table.
func New(o Options) *Table {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Table{
		now: o.Now, longest: cmp.Or(o.Longest, most), known: map[key]*whole{},
		share: share.New[packet.Addr, *whole](share.Options[packet.Addr]{Total: o.Max}),
	}
}

// Stats returns how the incomplete packets are shared.
func (t *Table) Stats() share.Stats { return t.share.Stats() }

// Add adds a fragment, which is charged to owner, and calls done with the packet if that is complete. Fragments of
// different owners are never of one packet. Add does not keep p, and done must not keep ip.
func (t *Table) Add(p *packet.Packet, owner packet.Addr, done func(ip []byte)) {
	w := t.add(p, owner)
	if w == nil {
		return
	}
	done(w.ip())
	t.mu.Lock()
	t.spare = append(t.spare, w)
	t.mu.Unlock()
}

// add adds a fragment. If this completes a packet, add returns it, removed from the Table, and nil otherwise.
func (t *Table) add(p *packet.Packet, owner packet.Addr) *whole {
	k := key{p.Tuple.Src, p.Tuple.Dst, owner, p.FragID, p.Tuple.Proto}
	if p.EtherType == packet.EtherIPv6 {
		k.proto = 0 // later fragments may have another protocol (RFC 8200 4.5)
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

// begin adds a packet of which nothing has come yet. It returns nil when there is no room for it. The caller holds mu.
func (t *Table) begin(k key) *whole {
	var w *whole
	if n := len(t.spare); n > 0 {
		w, t.spare = t.spare[n-1], t.spare[:n-1]
	} else {
		w = &whole{buf: make([]byte, headroom+t.longest+unit), have: make([]bool, (t.longest+unit)/unit)}
		w.claim.Value = w
	}
	w.key, w.head, w.size, w.got, w.ce = k, 0, 0, 0, false
	clear(w.have)
	lost, ok := t.share.Acquire(&w.claim, k.owner)
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

// forget drops an incomplete packet. The caller holds mu.
func (t *Table) forget(w *whole) {
	delete(t.known, w.key)
	t.share.Release(&w.claim)
	t.spare = append(t.spare, w)
}

// take adds a fragment. It returns false when the packet cannot be completed any more.
func (w *whole) take(p *packet.Packet) bool {
	f := p.Piece()
	end := f.At + len(f.Data)
	if end > len(w.buf)-headroom-unit || w.size > 0 && (end > w.size || !f.More && end != w.size) {
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
		return bytes.Equal(w.buf[headroom+f.At:headroom+end], f.Data) // repeated, or overlapping with other data
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
	w.ce = w.ce || packet.HasCE(p.IP)
	if !w.complete() {
		return true
	}
	if w.ce {
		packet.MarkCE(w.ip()) // of no effect when the ends do not support ECN
	}
	return packet.PutLength(w.ip())
}

func (w *whole) complete() bool { return w.head > 0 && w.size > 0 && w.got == w.size }

func (w *whole) ip() []byte { return w.buf[headroom-w.head : headroom+w.size] }
