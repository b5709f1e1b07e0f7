package packet

// A notice stands for the packets of a flow, and goes no further than the next node: its time to live is 0, with which
// no router forwards a packet (RFC 1812 5.3.1, RFC 8200 3). So a node that takes it for a packet does no harm by it.
// Nodes send notices inside the tunnel, and only there. Of TCP a notice has no flag, so that it says nothing of the
// connection's streams, or FIN.

// LongestNotice is the length in bytes of the longest notice: IPv6 and TCP.
const LongestNotice = 60

// PutNotice writes a notice with the tuple t to dst, which holds LongestNotice, and returns its length. fin sets FIN in
// one of TCP. It returns 0 for protocols other than TCP and UDP.
func PutNotice(dst []byte, t *Tuple, fin bool) int {
	l4, n := TCPHeadLen(&t.Src)-20, 20
	switch t.Proto {
	case TCP:
	case UDP:
		n = 8
	default:
		return 0
	}
	dst = dst[:l4+n]
	putIP(dst, t.Proto, &t.Src, &t.Dst)
	PutFields(dst, 0, 0)
	if t.Src.Is4() {
		setHeaderChecksum(dst[:l4])
	}
	b := dst[l4:]
	clear(b)
	be.PutUint16(b, t.SrcPort)
	be.PutUint16(b[2:], t.DstPort)
	if t.Proto == UDP {
		be.PutUint16(b[4:], uint16(n))
	} else if b[12] = 5 << 4; fin {
		b[13] = FIN
	}
	setL4Checksum(dst, l4, t.Proto)
	return len(dst)
}

// IsNotice reports whether p, which another node sent, is a notice.
func (p *Packet) IsNotice() bool { return p.TTL() == 0 }
