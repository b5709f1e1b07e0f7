package fragment

import (
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

const (
	// Longest is the length in bytes of the longest fragment that may wait: more than fits in a jumbo frame.
	Longest = 9 << 10
	// patience is how long a fragment waits for its first. Networks delay packets by less. The longer it were, the more
	// often a later datagram with the same identification would get the fragment (RFC 4963).
	patience = 2 * time.Second
	// grain is the number of bytes of which the memory of a waiting fragment is a multiple.
	grain = 1 << 10
)

// Fate is what becomes of a later fragment.
type Fate uint8

// The fates.
const (
	Found   Fate = iota // the way is known
	Waiting             // the Table has a copy, which waits for the first fragment
	Lost                // there is no room for it
)

// piece is a copy of a fragment that waits.
type piece struct {
	key
	ip    []byte
	end   time.Time
	claim share.Claim[uint64, *piece]

	newer, older *piece // of the same datagram
}

// Follow returns the way of a later fragment with this tuple and identification. If it is not known, the IP packet, of
// which Follow keeps a copy, waits for the first fragment, and is charged to owner. Of a sender that has too many there
// the oldest is lost.
func (t *Table) Follow(tuple *packet.Tuple, id uint32, owner uint64, ip []byte) (Way, Fate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := keyOf(tuple, id, owner)
	if w, ok := t.find(k); ok {
		return w, Found
	}
	if len(ip) > Longest {
		return Way{}, Lost
	}
	p := t.roomToWait(owner)
	if p == nil {
		return Way{}, Lost
	}
	if cap(p.ip) < len(ip) {
		p.ip = make([]byte, (len(ip)+grain-1)/grain*grain)
	}
	p.ip = p.ip[:copy(p.ip[:cap(p.ip)], ip)]
	p.key, p.end = k, t.now().Add(patience)
	if p.older = t.wait[k]; p.older != nil {
		p.older.newer = p
	}
	t.wait[k] = p
	return Way{}, Waiting
}

// roomToWait gives a piece that holds a unit of owner's, nil when there is none to be had. The caller holds mu.
func (t *Table) roomToWait(owner uint64) *piece {
	var p *piece
	if n := len(t.unused); n > 0 {
		p, t.unused = t.unused[n-1], t.unused[:n-1]
	} else {
		p = &piece{}
		p.claim.Value = p
	}
	lost, ok := t.queue.Acquire(&p.claim, owner)
	if lost != nil {
		t.takeOut(lost.Value)
		t.lost++
	}
	if !ok {
		t.unused = append(t.unused, p)
		return nil
	}
	return p
}

// takeOut removes a piece from those that wait. The caller holds mu.
func (t *Table) takeOut(p *piece) {
	switch {
	case p.newer != nil:
		p.newer.older = p.older
	case p.older != nil:
		t.wait[p.key] = p.older
	default:
		delete(t.wait, p.key)
	}
	if p.older != nil {
		p.older.newer = p.newer
	}
	p.newer, p.older = nil, nil
	t.queue.Release(&p.claim) // nothing, when it was lost
	t.unused = append(t.unused, p)
}

// Next copies to buf one of the fragments that wait for the first fragment with this tuple and identification, and
// forgets it. It returns the way and the copy, which is nil when none waits, or the way is not known any more. buf has
// Longest bytes. What came last is returned first: fragments in reversed order are in order then.
func (t *Table) Next(tuple *packet.Tuple, id uint32, owner uint64, buf []byte) (Way, []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := keyOf(tuple, id, owner)
	w, ok := t.find(k)
	if !ok {
		return Way{}, nil
	}
	now := t.now()
	for p := t.wait[k]; p != nil; p = t.wait[k] {
		t.takeOut(p)
		if p.end.After(now) {
			return w, buf[:copy(buf, p.ip)]
		}
		t.lost++
	}
	return Way{}, nil
}

// Lost returns how many fragments have waited in vain, so that there is no copy of them any more.
func (t *Table) Lost() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for _, p := range t.wait {
		for p != nil {
			next := p.older
			if !p.end.After(now) {
				t.takeOut(p)
				t.lost++
			}
			p = next
		}
	}
	return t.lost
}
