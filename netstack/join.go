package netstack

import "tapestry.dev/tapestry/netstack/packet"

// maxCut is how many packets that other nodes cut may be incomplete at once. They take 2 MiB. The pieces of a packet
// follow one another closely, so that only those that lost a piece stay.
const maxCut = 1024

// join takes a piece of a packet that a peer cut for a narrow path, and returns the packet if it is complete, else nil.
// Incomplete packets are charged to the peer. The packet is valid until the worker's next batch.
func (w *worker) join(from *peer, piece []byte) (whole []byte) {
	p := &w.latePacket
	if fault := p.ParseIP(piece); fault != packet.Good {
		w.count(Dropped, faultReason(fault))
		return nil
	}
	if p.Frag == packet.NoFrag {
		return piece
	}
	w.path.pieces.Add(p, from.owner, func(ip []byte) {
		at := len(w.joined)
		w.joined = append(w.joined, ip...)
		whole = w.joined[at:]
	})
	if whole == nil {
		w.count(Held, NotDropped)
	}
	return whole
}
