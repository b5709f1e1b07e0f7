// Package knock keeps the SYNs by which a sender has just asked Services for connections, until they are answered. When
// a backend refuses one, the same SYN can be sent to another, and its client never hears of the refusal. A SYN cannot
// be made anew: it has options (RFC 9293 3.1, RFC 7323) that nothing else of the connection tells.
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
	seq      uint32 // its sequence number
	refused  uint8
	n        uint8
	ip       [Longest]byte
}

// IP returns the packet. It belongs to the SYN.
func (s *SYN) IP() []byte { return s.ip[:s.n] }

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
	s.Orig, s.VNet, s.seq, s.refused, s.n = *orig, p.VNet, p.Segment().Seq, 0, uint8(copy(s.ip[:], p.IP))
}

// Refuse records that a backend has refused the SYN with this tuple and sequence number, and copies it to syn. It
// returns false when the SYN is not kept, or when as many backends as may have refused it: then the client hears of it.
func (r *Ring) Refuse(orig *packet.Tuple, seq uint32, backend uint64, syn *SYN) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.syns == nil {
		return false
	}
	for i := range uint32(size) { // the latest first
		s := &r.syns[(r.next-1-i)%size]
		if s.n == 0 || s.Orig != *orig {
			continue
		}
		if s.seq != seq || s.refused == Most {
			return false
		}
		s.backends[s.refused] = backend
		s.refused++
		*syn = *s
		return true
	}
	return false
}
