package netstack

import (
	"tapestry.dev/tapestry/netstack/fragment"
	"tapestry.dev/tapestry/netstack/packet"
)

// A node remembers the ways of so many fragmented datagrams at once, and so many later fragments wait at once for their
// first one, which is 47 for the largest datagram at an MTU of 1420 bytes.
const (
	maxFragmented = 4096
	maxWaiting    = 1024
)

// follow finds the way of a later fragment: it is that of its first fragment. A fragment that comes before its first is
// kept until that comes. That is so without translation, too: the addresses alone do not tell whether the fragment is
// of an answer which a Service's client knows by another address, nor whether the Policy permits its flow.
func (w *worker) follow(s *snapshot, j *journey) bool {
	way, fate := w.path.fragments.Follow(&j.orig, j.packet.FragID, s.owner(j), j.packet.IP)
	switch fate {
	case fragment.Waiting:
		j.verdict = Held
		return false
	case fragment.Lost:
		return j.drop(LostFragment)
	}
	j.along(&way)
	return true
}

// along sets the way of a later fragment, and its protocol: an IPv6 one names the header that follows the fragment
// header in the whole packet, which may be one of options (RFC 8200 4.5).
func (j *journey) along(way *fragment.Way) {
	j.packet.Tuple.Proto = way.To.Proto
	j.via, j.hit.To = way.Via, way.To
	j.hit.Translate = way.To.Src != j.orig.Src || way.To.Dst != j.orig.Dst
}

// catchUp carries the later fragments that waited for the first fragment of this journey, which has ended. They were
// admitted when they came, from the same sender.
func (w *worker) catchUp(s *snapshot, first *journey) {
	if w.late == nil {
		w.late = make([]byte, fragment.Longest)
	}
	p, id, owner := &w.latePacket, first.packet.FragID, s.owner(first)
	for {
		way, ip := w.path.fragments.Next(&first.orig, id, owner, w.late)
		if ip == nil || p.ParseIP(ip) != packet.Good {
			return
		}
		p.Tuple.Space = first.orig.Space
		j := journey{packet: p, origin: first.origin, orig: p.Tuple}
		j.along(&way)
		_ = w.translate(s, &j) && w.forward(s, &j)
		w.carry(s, &j)
		w.count(j.verdict, j.reason)
	}
}
