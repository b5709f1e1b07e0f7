// Package knock keeps the SYNs by which a sender has just asked Services for connections. When a backend refuses one,
// the same SYN can be sent to another, and its client never hears of the refusal. A SYN cannot be made anew: it has
// options (RFC 9293 3.1, RFC 7323) that nothing else of the connection tells.
//
// A backend may also accept a connection and give it up before it has said or acknowledged anything more. Its client
// has heard its terms by then: where its numbers begin, and which options it has. They are kept beside the SYN, since
// whoever takes the connection over has to go on by them.
//
// Each sender has a Ring of its own, in which its later SYNs displace its earlier ones. So a flood of SYNs costs nobody
// but its sender, whose refusals it then hears of, as it would without a Ring.
package knock

import (
	"sync"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// Longest is the length in bytes of the longest SYN that is kept: IPv6 and all options of TCP. One that carries
	// data, or has options of IP, may be longer.
	Longest = 40 + 60
	// Most is how many other backends a SYN is sent to until its client hears of a refusal. During a rolling update a
	// quarter of the pods may end at one time (RollingUpdateDeployment, the default of maxUnavailable); then one in a
	// thousand of the refused SYNs meets nobody else six times.
	Most = 5
	// size is how many SYNs a Ring has: those that a sender has under way while one of them goes to another node and
	// its refusal comes back, which takes a millisecond.
	size = 64
)

// SYN is a segment as its sender sent it, and who has refused it.
type SYN struct {
	// Orig is its tuple before translation, with its space.
	Orig packet.Tuple
	VNet packet.VNetHdr
	// Backends are the first Refused backends that have refused it.
	backends [Most]uint64
	terms    packet.Terms // that its client has heard, unless stage is asked
	seq      uint32       // its sequence number
	stage    stage
	refused  uint8
	n        uint8
	ip       [Longest]byte
}

// stage is how far the connection of a SYN has come.
type stage uint8

const (
	asked    stage = iota // no backend has accepted it
	accepted              // one has, and its client has heard that
	moving                // that one has given it up, and another one is asked
)

// IP returns the packet. It belongs to the SYN.
func (s *SYN) IP() []byte { return s.ip[:s.n] }

// Moving reports whether the client has its connection already, and is not to hear that another backend is asked.
func (s *SYN) Moving() bool { return s.stage == moving }

// AckedBy reports whether a segment acknowledges the SYN and nothing after it.
func (s *SYN) AckedBy(seg packet.Segment) bool {
	return seg.Flags&packet.ACK != 0 && seg.Ack == s.seq+1
}

// Seq returns its sequence number.
func (s *SYN) Seq() uint32 { return s.seq }

// Next returns the sequence number that the client, which has its connection already, expects of its server.
func (s *SYN) Next() uint32 { return s.terms.Seq + 1 }

// Refused returns the backends that have refused the SYN. The list belongs to the SYN.
func (s *SYN) Refused() []uint64 { return s.backends[:s.refused] }

// Ring keeps the last SYNs of one sender. The zero Ring is empty, and takes memory when the first SYN comes. Its
// methods may be called concurrently, and allocate nothing else.
type Ring struct {
	mu   sync.Mutex
	next uint32 // counts the SYNs that were kept
	syns *[size]SYN
}

// Keep keeps a SYN that begins a connection to a Service. orig is its tuple before translation, which p has not
// undergone. A SYN that is longer than Longest is not kept.
func (r *Ring) Keep(orig *packet.Tuple, p *packet.Packet) {
	if len(p.IP) > Longest || len(p.Tail) > 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.syns == nil {
		r.syns = new([size]SYN)
	}
	s := &r.syns[r.next%size]
	r.next++
	s.Orig, s.VNet, s.seq, s.stage, s.refused, s.n = *orig, p.VNet, p.Segment().Seq, asked, 0, uint8(copy(s.ip[:], p.IP))
}

// find returns the SYN with this tuple, the latest of several; nil if it is not kept. The caller holds mu.
func (r *Ring) find(orig *packet.Tuple) *SYN {
	if r.syns == nil {
		return nil
	}
	for i := range uint32(size) {
		if s := &r.syns[(r.next-1-i)%size]; s.n != 0 && s.Orig == *orig {
			return s
		}
	}
	return nil
}

// Refuse records that a backend has refused the SYN with this tuple and sequence number, and copies it to syn. It
// returns false when the SYN is not kept or was accepted, or when as many backends as may have refused it: then the
// client hears of it.
func (r *Ring) Refuse(orig *packet.Tuple, seq uint32, backend uint64, syn *SYN) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.find(orig)
	return s != nil && s.seq == seq && s.stage != accepted && s.refuse(backend, syn)
}

func (s *SYN) refuse(backend uint64, syn *SYN) bool {
	if s.refused == Most {
		return false
	}
	s.backends[s.refused] = backend
	s.refused++
	*syn = *s
	return true
}

// Answered records the terms on which a backend has accepted the SYN with this tuple. ack is what it has acknowledged.
func (r *Ring) Answered(orig *packet.Tuple, ack uint32, terms packet.Terms) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.find(orig); s != nil && s.stage == asked && s.seq == ack-1 {
		s.stage, s.terms = accepted, terms
	}
}

// Abandon is Refuse for a reset by which the backend that has accepted the SYN gives the connection up. rst has the
// numbers that the client knows. It must be what the client would obey at once, and say that nothing but the SYN has
// arrived or, by not saying it, that there is no such connection (RFC 9293 3.10.7.1). From then on the SYN is Moving.
func (r *Ring) Abandon(orig *packet.Tuple, rst packet.Segment, backend uint64, syn *SYN) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.find(orig)
	if s == nil || s.stage != accepted || s.refused == Most || s.terms.Other {
		return false
	}
	if rst.Seq != s.Next() || rst.Flags&packet.ACK != 0 && !s.AckedBy(rst) {
		return false
	}
	s.stage = moving
	return s.refuse(backend, syn)
}

// Asked copies the Moving SYN with this tuple to syn. It returns false when there is none.
func (r *Ring) Asked(orig *packet.Tuple, syn *SYN) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.find(orig)
	if s == nil || s.stage != moving {
		return false
	}
	*syn = *s
	return true
}

// TakeOver records that a backend accepts the Moving SYN with this tuple, and returns how far its numbers are from
// those that the client knows. It returns false when there is no such SYN, or the client cannot be served so.
func (r *Ring) TakeOver(orig *packet.Tuple, terms packet.Terms) (by packet.Shift, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.find(orig)
	if s == nil || s.stage != moving {
		return by, false
	}
	if by, ok = s.terms.Shift(terms); ok {
		s.stage = accepted
	}
	return by, ok
}
