package flow

import (
	"math/rand/v2"

	"tapestry.dev/tapestry/netstack/packet"
)

// Result is what became of an Insert.
type Result uint8

// The results.
const (
	Inserted Result = iota
	Exists          // Orig is in the table already: somebody was first, look up again
	Full            // no room, and nothing that may be evicted
	NoPort          // Reply is taken, and so are the ports that were tried instead
)

func (r Result) String() string { return [...]string{"inserted", "exists", "full", "no-port"}[r&3] }

// Ports that are tried in place of a taken one: first those of Linux (net.ipv4.ip_local_port_range), where a random start
// meets few others, then the rest of the unprivileged ones.
const (
	firstPort, lastPort       = 32768, 60999
	firstMore, lastMore       = 1024, 32767
	firstTries, portTries     = 96, 128
	evictScan, insertAttempts = 128, 8
)

// Insert adds a flow, atomically for both of its tuples. When e.Reply is taken by another flow, its DstPort (both ports for
// an ICMP echo) is replaced by one that is free, in *e too. The ref is that of the flow which now holds Orig, for
// Inserted and Exists. Other results leave *e as it was.
func (t *Table) Insert(e *Entry) (uint32, Result) {
	i, ok := t.take()
	if !ok {
		t.full.Add(1)
		return 0, Full
	}
	reply := e.Reply
	r, res := t.insert(i, e)
	if res == Inserted {
		return r, res
	}
	t.release(i)
	e.Reply = reply
	switch res {
	case Full:
		t.full.Add(1)
	case NoPort:
		t.noPort.Add(1)
	}
	return r, res
}

// insert puts e into the free slot i.
func (t *Table) insert(i uint32, e *Entry) (uint32, Result) {
	ports := portSearch{proto: e.Orig.Proto}
	for attempt := 0; ; {
		p, res := t.try(i, e)
		switch res {
		case tryInserted:
			return ref(p.slot, p.seq), Inserted
		case tryRoom:
			if attempt++; attempt > insertAttempts || !t.makeRoom(e) {
				return 0, Full
			}
		case tryOrig, tryReply:
			if attempt < insertAttempts && t.removeExpired(p) {
				attempt++
				continue
			}
			if res == tryOrig {
				return ref(p.slot, p.seq), Exists
			}
			if !ports.next(&e.Reply) {
				return 0, NoPort
			}
		}
	}
}

type tried uint8

const (
	tryInserted tried = iota
	tryOrig           // place holds Orig
	tryReply          // place holds Reply
	tryRoom           // the index has no room near one of the keys
)

// try is one attempt with the tuples as they are.
func (t *Table) try(i uint32, e *Entry) (place, tried) {
	m := image{
		tuple:   [2]packet.Tuple{e.Orig, e.Reply},
		meta:    makeMeta(e, t.now.Load()),
		backend: e.Backend, via: e.Via,
	}
	m.tuple[Reply].Proto = e.Orig.Proto
	ho, hr := t.hash(&m.tuple[Original]), t.hash(&m.tuple[Reply])
	sum := m.sum(&t.hasher)

	t.lock(ho, hr)
	defer t.unlock(ho, hr)
	if p, taken := t.find(&m.tuple[Original], ho); taken {
		return p, tryOrig
	}
	if p, taken := t.find(&m.tuple[Reply], hr); taken {
		return p, tryReply
	}
	s := &t.slots[i]
	s.write(&m, sum, first(e.Orig.Proto, e.TCPFlags), t.now.Load(), e.Checked)
	if !t.linkBoth(i, &m, ho, hr) {
		s.retire()
		return place{}, tryRoom
	}
	return place{slot: i, seq: s.seq.Load()}, tryInserted
}

// linkBoth adds both keys to the index, or none. A flow between a port and itself has one key.
func (t *Table) linkBoth(i uint32, m *image, ho, hr uint64) bool {
	if !t.link(ho, key(ho, i, Original)) {
		return false
	}
	if m.tuple[Original] != m.tuple[Reply] && !t.link(hr, key(hr, i, Reply)) {
		t.unlink(ho, i, Original)
		return false
	}
	return true
}

// portSearch walks the ports that may stand in for a taken one.
type portSearch struct {
	proto packet.Proto
	tries int
	at    uint32
}

// next sets another port in the reply tuple; false when there is none left to try.
func (p *portSearch) next(reply *packet.Tuple) bool {
	from, to := uint32(firstPort), uint32(lastPort)
	if p.tries >= firstTries {
		from, to = firstMore, lastMore
	}
	switch p.tries {
	case portTries:
		return false
	case 0, firstTries:
		p.at = from + rand.Uint32N(to-from+1)
	default:
		if p.at++; p.at > to {
			p.at = from
		}
	}
	p.tries++
	switch p.proto {
	case packet.TCP, packet.UDP, packet.SCTP:
		reply.DstPort = uint16(p.at)
	case packet.ICMPv4, packet.ICMPv6:
		reply.SrcPort, reply.DstPort = uint16(p.at), uint16(p.at)
	default:
		return false
	}
	return true
}

// Delete removes the flow that r names if it still has orig.
func (t *Table) Delete(r uint32, orig *packet.Tuple) bool {
	s, seq := t.deref(r)
	if s == nil {
		return false
	}
	var m image
	return s.load(&m, seq) && m.tuple[Original] == *orig && t.remove(r&(maxSlots-1), seq)
}

// remove empties slot i if it is in use under seq.
func (t *Table) remove(i, seq uint32) bool {
	s := &t.slots[i]
	var m image
	if !s.load(&m, seq) {
		return false
	}
	ho, hr := t.hash(&m.tuple[Original]), t.hash(&m.tuple[Reply])
	t.lock(ho, hr)
	if s.seq.Load() != seq {
		t.unlock(ho, hr)
		return false
	}
	t.unlink(ho, i, Original)
	t.unlink(hr, i, Reply)
	s.retire()
	t.unlock(ho, hr)
	t.release(i)
	return true
}

// removeExpired removes the flow at p when its time is over: it is a miss for Lookup and must not stand in the way.
func (t *Table) removeExpired(p place) bool {
	s := &t.slots[p.slot]
	l, seen := s.loadLive(), s.seen.Load()
	if !l.of(p.seq) {
		return true // gone meanwhile
	}
	if idle(t.now.Load(), seen) <= timeouts[l.state()] {
		return false
	}
	if t.remove(p.slot, p.seq) {
		t.expired.Add(1)
	}
	return true
}

// take gives a free slot, if need be that of a flow which may go.
func (t *Table) take() (uint32, bool) {
	for range insertAttempts {
		if i, ok := t.pop(); ok {
			return i, true
		}
		at := t.hand.Add(evictScan) - evictScan
		v := victim{now: t.now.Load()}
		for j := range uint32(min(evictScan, len(t.slots))) {
			v.consider(t, (at+j)%uint32(len(t.slots)))
		}
		if v.rank > 0 {
			v.evict(t)
		}
	}
	return 0, false
}

// makeRoom evicts a flow from the buckets near either key of e.
func (t *Table) makeRoom(e *Entry) bool {
	found := false
	for _, tp := range [2]*packet.Tuple{&e.Orig, &e.Reply} {
		n := t.home(t.hash(tp))
		v := victim{now: t.now.Load()}
		for range maxProbe {
			for j := range bucketKeys {
				if k := t.index[n].keys[j].Load(); k != 0 {
					v.consider(t, keySlot(k))
				} else {
					found = true
				}
			}
			n = t.after(n)
		}
		if v.rank > 0 {
			v.evict(t)
			found = true
		}
	}
	return found
}

// victim is the best flow to evict so far.
type victim struct {
	now, slot, seq, idle uint32
	rank                 uint8 // 0: none yet
}

const rankExpired = 255

func (v *victim) consider(t *Table, i uint32) {
	s := &t.slots[i]
	seq, l, seen := s.seq.Load(), s.loadLive(), s.seen.Load()
	state := l.state()
	if state == free || !l.of(seq) {
		return
	}
	rank, d := cheap[state], idle(v.now, seen)
	switch {
	case d > timeouts[state]:
		rank = rankExpired
	case d > pressed[state]:
		rank = max(rank, 1)
	}
	if rank > v.rank || rank == v.rank && d > v.idle {
		v.slot, v.seq, v.idle, v.rank = i, seq, d, rank
	}
}

func (v *victim) evict(t *Table) {
	if !t.remove(v.slot, v.seq) {
		return
	}
	if v.rank == rankExpired {
		t.expired.Add(1)
	} else {
		t.evicted.Add(1)
	}
}
