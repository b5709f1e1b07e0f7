package flow

import (
	"math/rand/v2"

	"tapestry.dev/tapestry/netstack/packet"
)

// Result is the outcome of an Insert.
type Result uint8

// The results.
const (
	Inserted Result = iota
	Exists          // Orig is in the table already: another insert was first, so look up again
	Full            // no room, and no flow was found that may go
	NoPort          // Reply is taken, and so are the ports that were tried instead, by flows that need not give way
)

func (r Result) String() string { return [...]string{"inserted", "exists", "full", "no-port"}[r&3] }

// Ports that are tried in place of a taken one: first the range of Linux (net.ipv4.ip_local_port_range), where a random
// start meets few taken ones, then the other unprivileged ports. A port below 1024 is replaced only by one of those
// that rresvport(3) gives to privileged programs: servers such as NFS trust them, and RFC 4787 REQ-3a asks for it.
const (
	firstPort, lastPort             = 32768, 60999
	firstMore, lastMore             = 1024, 32767
	firstPrivileged, lastPrivileged = 512, 1023
	firstTries, portTries           = 96, 128
	insertAttempts                  = 8
)

// Insert adds a flow, atomically for both of its tuples. When e.Reply is taken by another flow, Insert replaces its
// DstPort (both ports for an ICMP echo) by a free one, also in *e. For Inserted and Exists it returns the ref of the
// flow that holds Orig. Other results leave *e unchanged.
func (t *Table) Insert(e *Entry) (uint32, Result) {
	i, ok := t.take(e.Owner, t.clientOf(&e.Orig))
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
	asked := false // whether somebody was asked to give way
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
			if ports.next(&e.Reply) {
				continue
			}
			if asked || !t.freePort(i, e) {
				return 0, NoPort
			}
			asked = true
		}
	}
}

type tried uint8

const (
	tryInserted tried = iota
	tryOrig           // the returned place holds Orig
	tryReply          // the returned place holds Reply
	tryRoom           // the index has no room near one of the keys
)

// try makes one attempt with the tuples as they are.
func (t *Table) try(i uint32, e *Entry) (place, tried) {
	r := record{
		tuple:   [2]packet.Tuple{e.Orig, e.Reply},
		meta:    makeMeta(&e.Orig, &e.Reply, e.Kind),
		created: t.now.Load(),
		backend: e.Backend, via: e.Via,
		owner: e.Owner, cluster: e.Cluster, policy: e.Policy, counts: e.Counts,
	}
	r.tuple[Reply].Proto = e.Orig.Proto
	r.marks.learn(Original, e.Segment)
	ho, hr := r.hashes(&t.hasher)
	sum := r.sum(&t.hasher, ho, hr)

	t.lock(ho, hr)
	defer t.unlock(ho, hr)
	if p, taken := t.find(&r.tuple[Original], ho); taken {
		return p, tryOrig
	}
	if p, taken := t.find(&r.tuple[Reply], hr); taken {
		return p, tryReply
	}
	s := &t.slots[i]
	state := e.Begins
	if state == free {
		state = first(e.Orig.Proto, e.Segment.Flags)
	}
	s.write(&t.ledgers[i], &r, sum, state, seenIn(r.created, free, state), e.Checked)
	seq := s.seq.Load()
	if !t.linkBoth(i, &r, ho, hr) {
		if was := s.retire(); was != state {
			t.tell(i, seq, &r, was, state) // an early packet found one of the keys, and what it changed was told
		}
		return place{}, tryRoom
	}
	t.tell(i, seq, &r, free, state)
	return place{slot: i, seq: seq}, tryInserted
}

// linkBoth adds both keys to the index, or none. A flow from a port to itself has only one key.
func (t *Table) linkBoth(i uint32, r *record, ho, hr uint64) bool {
	if !t.link(ho, key(ho, i, Original)) {
		return false
	}
	if r.tuple[Original] != r.tuple[Reply] && !t.link(hr, key(hr, i, Reply)) {
		t.unlink(ho, i, Original)
		return false
	}
	return true
}

// portSearch goes through the ports that may replace a taken one.
type portSearch struct {
	proto packet.Proto
	tries int
	at    uint32
	// privileged is set when the port to be replaced is below 1024.
	privileged bool
}

// next sets another port in the reply tuple. It returns false when there is none left to try.
func (p *portSearch) next(reply *packet.Tuple) bool {
	if p.tries == 0 {
		p.privileged = reply.DstPort < firstMore && p.proto != packet.ICMPv4 && p.proto != packet.ICMPv6
	}
	from, to := uint32(firstPort), uint32(lastPort)
	switch {
	case p.privileged:
		from, to = firstPrivileged, lastPrivileged
	case p.tries >= firstTries:
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

// Delete removes the flow that ref names if its original tuple is still orig, and reports whether it did.
func (t *Table) Delete(ref uint32, orig *packet.Tuple) bool {
	s, seq := t.deref(ref)
	if s == nil {
		return false
	}
	var r record
	return s.load(&r, seq) && r.tuple[Original] == *orig && t.remove(ref&(maxSlots-1), seq)
}

// remove empties slot i if it is in use under seq, and releases it.
func (t *Table) remove(i, seq uint32) bool {
	if !t.empty(i, seq) {
		return false
	}
	t.release(i)
	return true
}

// empty empties slot i if it is in use under seq. The slot stays charged; the caller releases or moves it.
func (t *Table) empty(i, seq uint32) bool {
	s := &t.slots[i]
	var r record
	if !s.load(&r, seq) {
		return false
	}
	ho, hr := r.hashes(&t.hasher)
	t.lock(ho, hr)
	if s.seq.Load() != seq {
		t.unlock(ho, hr)
		return false
	}
	t.unlink(ho, i, Original)
	t.unlink(hr, i, Reply)
	ended, seen := t.ended, s.seen.Load()
	if ended != nil {
		t.load(i, &r, seq) // again, for the latest counts
	}
	state := s.retire()
	t.unlock(ho, hr)
	t.tell(i, seq, &r, state, free)
	if ended != nil {
		ended(r.entry(), t.infoOf(&r, ref(i, seq), state, seen))
	}
	return true
}

// removeExpired removes the flow at p when its time is over: Lookup does not find it, so it must not stand in the way
// of an Insert. It reports whether the flow is gone.
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
