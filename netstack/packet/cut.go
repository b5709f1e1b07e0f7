package packet

// cutMark stands in the reserved octet of the fragment headers that a Cutter adds. Senders set that octet to zero and
// receivers ignore it (RFC 8200 4.5), so a receiver that does not know the mark takes the pieces for fragments like any
// others.
const cutMark = 0x54

// fragmentHeader is the length of IPv6's fragment header.
const fragmentHeader = 8

// Cutter cuts IPv6 packets for a tunnel whose path carries less than IPv6's least MTU. Each piece is a packet by
// itself: an IPv6 fragment with a mark, by which the node at the other end of the tunnel recognises what it has to join
// (IsCut). The fragments of a sender, when they must be cut further, become smaller fragments of the same packet,
// without a mark: only the receiver can join them. Call Reset, then Next until it returns 0. Nothing is allocated.
type Cutter struct {
	ip    []byte // borrowed
	outer int
	head  int // end of the headers that each piece repeats, without the fragment header
	next  int // offset of the octet that names the fragment header
	at    int // offset of what is not emitted yet
	size  int // data of each piece but the last
	id    uint32
	had   bool // ip is a fragment already, or has at least the header of one
}

// Reset starts on ip, which is borrowed until Next returns 0. ip is an IPv6 packet, after an outer IP header of outer
// bytes, which each piece repeats. The pieces get the identification id, and are at most mtu bytes long with the outer
// header. Reset returns false when headers leave no room for data.
func (c *Cutter) Reset(ip []byte, outer, mtu int, id uint32) bool {
	*c = Cutter{ip: ip, outer: outer, id: id}
	if c.head, c.next, c.had = splitPoint(ip[outer:]); c.head == 0 {
		return false
	}
	c.head, c.next = c.head+outer, c.next+outer
	c.at = c.head
	if c.had {
		c.at += fragmentHeader
	}
	data := len(ip) - c.at
	room := (mtu - c.head - fragmentHeader) &^ 7
	if data <= 0 || room < 8 {
		return false
	}
	pieces := (data + room - 1) / room
	c.size = ((data+pieces-1)/pieces + 7) &^ 7 // about equal ones, since the kernel sends equal datagrams together
	return true
}

// Next writes the next piece to dst and returns its length, 0 when there is none left.
func (c *Cutter) Next(dst []byte) int {
	if c.at >= len(c.ip) {
		return 0
	}
	n := min(c.size, len(c.ip)-c.at)
	dst = dst[:c.head+fragmentHeader+n]
	copy(dst, c.ip[:c.head])
	word, more := c.at-c.head, c.at+n < len(c.ip)
	f := dst[c.head:]
	if c.had {
		was := be.Uint16(c.ip[c.head+2:])
		copy(f, c.ip[c.head:c.head+fragmentHeader])
		f[1] = 0
		word += int(was&^7) - fragmentHeader
		more = more || was&1 != 0
	} else {
		f[0], f[1] = c.ip[c.next], cutMark
		dst[c.next] = extFragment
		be.PutUint32(f[4:], c.id)
	}
	if more {
		word |= 1
	}
	be.PutUint16(f[2:], uint16(word))
	copy(f[fragmentHeader:], c.ip[c.at:])
	c.at += n
	PutLength(dst[c.outer:])
	if c.outer > 0 {
		PutLength(dst)
	}
	return len(dst)
}

// splitPoint returns where the fragment header of the IPv6 packet ip is or would be: behind the headers that routers on
// the way look at (RFC 8200 4.5). next is the offset of the octet that names what stands there. at is 0 for a packet
// that is cut off.
func splitPoint(ip []byte) (at, next int, has bool) {
	if len(ip) < 40 {
		return 0, 0, false
	}
	at, next = 40, 6
	for end, names := at, next; ; {
		kind := ip[names]
		switch kind {
		case extHopByHop, extRouting, extDestOpts:
		case extFragment:
			if end+fragmentHeader > len(ip) {
				return 0, 0, false
			}
			return end, names, true
		default:
			return at, next, false
		}
		if end+8 > len(ip) {
			return 0, 0, false
		}
		names, end = end, end+(int(ip[end+1])+1)*8
		if end > len(ip) {
			return 0, 0, false
		}
		if kind != extDestOpts {
			at, next = end, names
		}
	}
}

// IsCut reports whether ip is a piece that a Cutter marked. It looks at a few octets only, so ip may be anything.
func IsCut(ip []byte) bool {
	if len(ip) < 48 || ip[0]>>4 != 6 {
		return false
	}
	switch ip[6] {
	case extFragment:
		return ip[41] == cutMark
	case extHopByHop, extRouting, extDestOpts:
		at, _, has := splitPoint(ip)
		return has && ip[at+1] == cutMark
	}
	return false
}

// ClearCutMark removes from a sender's own fragment the mark of a Cutter, which is not the sender's to set.
func (p *Packet) ClearCutMark() {
	if p.fragAt != 0 {
		p.IP[p.fragAt+1] = 0
	}
}
